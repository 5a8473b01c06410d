"""The log of rounds: one chain, the same bytes at every peer, whole after kill -9, bounded, and checked when read."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.full_disk import files_up_to

from shoal.swarm.errors import MalformedMessage, OutOfMemory
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.delta_entry import PAYLOADS, listing_of, outcome_of, read_about
from shoal.swarm.rounds.delta_log import DeltaLog, LogLimits
from shoal.swarm.rounds.exchange import Outcome
from shoal.swarm.transfer.block_transfer_donor import read_piece
from shoal.swarm.transfer.block_transfer_listing import Listing, read_listing

PEERS = ((PeerId("alice"), 1000), (PeerId("bob"), 900))


def outcome(round_: int, size: int = 5000) -> Outcome:
    payloads = tuple(bytes([round_ % 256, shard]) * (size // 2 + shard) for shard in range(3))
    return Outcome(round_, 0, payloads, PEERS)


def state(round_: int) -> bytes:
    """After a round."""
    return hashlib.sha256(b"state %d" % round_).digest()


def fill(log: DeltaLog, rounds: range) -> DeltaLog:
    for round_ in rounds:
        log.append(outcome(round_), state(round_ - 1), state(round_))
    return log


def test_outcomes_come_back_in_order_and_to_the_byte(tmp_path: Path) -> None:
    fill(DeltaLog(tmp_path, "run"), range(5))
    log = DeltaLog(tmp_path, "run")
    assert [entry.round for entry in log.entries] == [0, 1, 2, 3, 4]
    assert [log.read(entry) for entry in log.entries] == [outcome(round_) for round_ in range(5)]
    assert log.refused == ()
    assert log.last is not None
    assert log.last.about.after == state(4)
    assert log.total_bytes == sum(sum(map(len, outcome(r).aggregates)) for r in range(5))


def test_two_peers_write_the_same_bytes_under_the_same_names(tmp_path: Path) -> None:
    one, two = fill(DeltaLog(tmp_path / "one", "run"), range(3)), fill(DeltaLog(tmp_path / "two", "run"), range(3))
    assert [entry.bundle for entry in one.entries] == [entry.bundle for entry in two.entries]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    other = fill(DeltaLog(tmp_path / "other", "another run"), range(3))
    assert {entry.bundle for entry in other.entries}.isdisjoint(entry.bundle for entry in one.entries)


def test_only_what_follows_is_taken_and_the_same_again_does_no_harm(tmp_path: Path) -> None:
    log = fill(DeltaLog(tmp_path, "run"), range(3))
    assert log.append(outcome(2), state(1), state(2)) == log.last
    with pytest.raises(ValueError, match="round 4 does not follow round 2"):
        log.append(outcome(4), state(3), state(4))
    with pytest.raises(ValueError, match="round 1 does not follow round 2"):
        log.append(outcome(1), state(2), state(3))
    log.append(outcome(7), state(2), state(7))  # rounds between were skipped
    assert [entry.round for entry in log.entries] == [0, 1, 2, 7]


def test_what_leads_on_from_a_state(tmp_path: Path) -> None:
    log = fill(DeltaLog(tmp_path, "run"), range(6))
    assert [entry.round for entry in log.since(state(2))] == [3, 4, 5]
    assert list(log.since(state(5))) == []
    assert list(log.since(b"x" * 32)) == []


def test_the_oldest_give_way(tmp_path: Path) -> None:
    by_number = fill(DeltaLog(tmp_path / "number", "run", LogLimits(entries=3)), range(10))
    assert [entry.round for entry in by_number.entries] == [7, 8, 9]
    assert len(list((tmp_path / "number").iterdir())) == 3
    by_bytes = fill(DeltaLog(tmp_path / "bytes", "run", LogLimits(total_bytes=40_000)), range(10))
    assert [entry.round for entry in by_bytes.entries] == [8, 9]
    tiny = fill(DeltaLog(tmp_path / "tiny", "run", LogLimits(total_bytes=1)), range(3))
    assert [entry.round for entry in tiny.entries] == [2], "the newest always stays"


def test_a_log_can_begin_somewhere_else(tmp_path: Path) -> None:
    log = fill(DeltaLog(tmp_path, "run"), range(3))
    log.restart()
    assert not list(tmp_path.iterdir())
    fill(log, range(50, 52))
    assert [entry.round for entry in DeltaLog(tmp_path, "run").entries] == [50, 51]


@pytest.mark.parametrize("keep", [0, 5, 12, 100, 400, -1])
def test_a_truncated_newest_entry_is_dropped_with_a_line(tmp_path: Path, keep: int) -> None:
    fill(DeltaLog(tmp_path, "run"), range(3))
    path = tmp_path / "0000000002.delta"
    path.write_bytes(path.read_bytes()[:keep])
    log = DeltaLog(tmp_path, "run")
    assert [entry.round for entry in log.entries] == [0, 1]
    assert "0000000002.delta" in log.refused[0]
    fill(log, range(2, 4))
    assert [entry.round for entry in DeltaLog(tmp_path, "run").entries] == [0, 1, 2, 3]


def test_a_gap_leaves_the_newer_part(tmp_path: Path) -> None:
    fill(DeltaLog(tmp_path, "run"), range(6))
    (tmp_path / "0000000002.delta").unlink()
    log = DeltaLog(tmp_path, "run")
    assert [entry.round for entry in log.entries] == [3, 4, 5]
    assert "0000000001.delta does not lead to the entry after it" in log.refused[0]
    assert len(list(tmp_path.iterdir())) == 3


def test_the_log_of_another_run_is_not_taken_for_ours(tmp_path: Path) -> None:
    fill(DeltaLog(tmp_path, "another"), range(2))
    assert not DeltaLog(tmp_path, "run").entries


def test_a_flipped_byte_is_found_when_the_entry_is_read(tmp_path: Path) -> None:
    log = fill(DeltaLog(tmp_path, "run"), range(2))
    path = tmp_path / "0000000001.delta"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(MalformedMessage, match=r"0000000001\.delta is damaged"):
        log.read(log.entries[1])
    assert log.read(log.entries[0]) == outcome(0)


@pytest.mark.parametrize("room", [0, 10, 2000])
def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, room: int) -> None:
    log = fill(DeltaLog(tmp_path, "run"), range(2))
    with files_up_to(room), pytest.raises(OutOfMemory, match="cannot write the log of rounds"):
        log.append(outcome(2), state(1), state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000000000.delta", "0000000001.delta"]
    assert [entry.round for entry in log.entries] == [0, 1]
    fill(log, range(2, 3))
    assert [entry.round for entry in DeltaLog(tmp_path, "run").entries] == [0, 1, 2]


_WRITER = """
import sys
from pathlib import Path
from training.test_delta_log import outcome, state
from shoal.swarm.rounds.delta_log import DeltaLog
log = DeltaLog(Path(sys.argv[1]), "run")
for round_ in range(100000):
    log.append(outcome(round_, 400_000), state(round_ - 1), state(round_))
    print(round_, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 5, 9])
def test_kill_9_at_any_instant_loses_no_round_that_was_kept(tmp_path: Path, lines: int) -> None:
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(lines)]
    time.sleep(0.0005 * lines)  # into the middle of the next one
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    log = DeltaLog(tmp_path, "run")
    assert log.refused == ()
    rounds = [entry.round for entry in log.entries]
    assert rounds == list(range(len(rounds)))
    assert len(rounds) > said[-1]
    assert log.read(log.entries[-1]) == outcome(rounds[-1], 400_000)
    assert all(path.suffix == ".delta" for path in tmp_path.iterdir()), "nothing half written is left"


def test_an_entry_is_given_away_as_a_bundle(tmp_path: Path) -> None:
    log = fill(DeltaLog(tmp_path, "run"), range(2))
    entry = log.entries[1]
    bundle = log.find(entry.bundle)
    assert bundle is not None
    part = bundle.files[PAYLOADS]
    about = read_about(read_listing(bundle.listing, entry.bundle))
    assert outcome_of(about, read_piece(part.path, part.start, part.size_bytes)) == outcome(1)


@pytest.mark.parametrize(
    "changes",
    [
        {"round_": -1},
        {"fragment": -1},
        {"aggregates": ()},
        {"contributors": tuple(reversed(PEERS))},
        {"contributors": ((PeerId("alice"), 0),)},
        {"contributors": (PEERS[0], PEERS[0])},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    good: dict[str, object] = {"round_": 3, "fragment": 0, "aggregates": (b"abc",), "contributors": PEERS}
    wrong = good | changes
    made = Outcome(*wrong.values())  # type: ignore[arg-type]
    with pytest.raises(MalformedMessage, match="contradicts itself"):
        read_about(listing_of("run", made, state(0), state(1)))


def test_a_header_with_other_lengths_than_its_payloads_is_refused() -> None:
    one, two = (listing_of("run", outcome(3, size), state(2), state(3)) for size in (1000, 1002))
    with pytest.raises(MalformedMessage, match="contradicts itself"):
        read_about(Listing(one.kind, one.about, one.block_bytes, two.files))
    with pytest.raises(MalformedMessage, match="bytes for payloads"):
        outcome_of(read_about(one), b"short")


@given(st.binary(max_size=200))
def test_any_bytes_as_a_header_are_refused_or_read(about: bytes) -> None:
    listing = listing_of("run", outcome(1), state(0), state(1))
    try:
        read_about(Listing(listing.kind, about, listing.block_bytes, listing.files))
    except MalformedMessage:
        pass
