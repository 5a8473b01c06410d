"""The owner's book: single use, two processes at once, kill -9."""

import json
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from swarm.people import NOW, OWNER, person, private_swarm, public_swarm

from shoal.swarm.errors import MalformedMessage, Refused, UsageError
from shoal.swarm.members import invite as invites
from shoal.swarm.members.invite import JoinRequest, RenewRequest, read_invite
from shoal.swarm.members.invite_store import InviteStore
from shoal.swarm.members.membership import check_certificate, read_certificate
from shoal.swarm.members.revocation import Revocations

SWARM = private_swarm()
ADDRESS = f"/ip4/192.168.1.7/tcp/4001/p2p/{OWNER.peer_id}"
ALICE, BOB = person(1).peer_id, person(2).peer_id


@pytest.fixture
def store(tmp_path: Path) -> Iterator[InviteStore]:
    opened = InviteStore(tmp_path / "invites.sqlite", OWNER, SWARM)
    yield opened
    opened.close()


def request(line: str, peer: str = ALICE, name: str = "desk") -> bytes:
    return invites.join_request(read_invite(line, NOW), peer, name)  # type: ignore[arg-type]


def join(store: InviteStore, line: str, peer: str = ALICE, now: float = NOW) -> bytes:
    answer = store.answer(peer, request(line, peer), now)  # type: ignore[arg-type]
    return invites.answers.decode(answer).certificate


def known(store: InviteStore) -> Revocations:
    revocations = Revocations(SWARM.id, SWARM.owner)
    revocations.merge(store.revocations())
    return revocations


def test_an_invite_lets_in_one_machine(store: InviteStore) -> None:
    line = store.create((ADDRESS,), NOW)
    assert [entry.state for entry in store.invites(NOW)] == ["open"]
    certificate = join(store, line)
    assert check_certificate(certificate, SWARM, ALICE, NOW, known(store)) is None
    assert [(entry.state, entry.used_by) for entry in store.invites(NOW)] == [("used", ALICE)]
    assert [(member.peer, member.name) for member in store.members()] == [(ALICE, "desk")]
    with pytest.raises(Refused, match="already used") as caught:
        join(store, line, BOB)
    assert caught.value.exit_code == 4


def test_a_lost_answer_is_given_again(store: InviteStore) -> None:
    line = store.create((ADDRESS,), NOW, 60)
    first = join(store, line)
    assert join(store, line) == first
    assert join(store, line, now=NOW + 3600) == first  # used in time


OTHER_ADDRESS = ADDRESS.replace("4001", "4002")
DAY_S = 86400.0


def test_the_invite_of_the_start_screen_stays_while_it_is_good(store: InviteStore) -> None:
    first = read_invite(store.standing((ADDRESS,), NOW), NOW)
    store.create((ADDRESS,), NOW + 1, 90 * DAY_S)  # one that was made for somebody is not shown again
    later = read_invite(store.standing((OTHER_ADDRESS,), NOW + 6 * DAY_S), NOW)
    assert (later.id, later.expires_at) == (first.id, first.expires_at)
    assert later.bootstrap == (OTHER_ADDRESS,)
    assert len(store.invites(NOW)) == 2


def test_a_used_revoked_or_nearly_expired_invite_is_not_shown_again(store: InviteStore) -> None:
    used = store.standing((ADDRESS,), NOW)
    join(store, used)
    revoked = read_invite(store.standing((ADDRESS,), NOW), NOW).id
    store.revoke_invite(revoked, NOW)
    old = read_invite(store.standing((ADDRESS,), NOW), NOW).id
    fresh = read_invite(store.standing((ADDRESS,), NOW + 6 * DAY_S + 1), NOW).id
    assert len({read_invite(used, NOW).id, revoked, old, fresh}) == 4


def test_a_public_swarm_keeps_no_standing_invite(tmp_path: Path) -> None:
    opened = InviteStore(tmp_path / "invites.sqlite", OWNER, public_swarm())
    assert read_invite(opened.standing((ADDRESS,), NOW), NOW).secret == b""
    assert opened.invites(NOW) == []
    opened.close()


def test_a_store_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "invites.sqlite"
    first = InviteStore(path, OWNER, SWARM)
    line = first.create((ADDRESS,), NOW)
    first.close()
    with sqlite3.connect(path) as old:
        old.execute("ALTER TABLE invites DROP COLUMN standing")
    old.close()
    opened = InviteStore(path, OWNER, SWARM)
    assert read_invite(opened.standing((ADDRESS,), NOW), NOW).id != read_invite(line, NOW).id
    join(opened, line)
    opened.close()


def test_an_expired_invite_is_refused(store: InviteStore) -> None:
    line = store.create((ADDRESS,), NOW, 60)
    with pytest.raises(Refused, match="has expired"):
        join(store, line, now=NOW + 60)
    assert [entry.state for entry in store.invites(NOW + 60)] == ["expired"]


def test_a_revoked_invite_is_refused(store: InviteStore) -> None:
    line = store.create((ADDRESS,), NOW)
    (entry,) = store.invites(NOW)
    store.revoke_invite(entry.id, NOW)
    store.revoke_invite(entry.id, NOW + 1)
    with pytest.raises(Refused, match="was revoked"):
        join(store, line)
    assert [entry.state for entry in store.invites(NOW)] == ["revoked"]


def test_an_unknown_or_used_invite_cannot_be_revoked(store: InviteStore) -> None:
    with pytest.raises(UsageError, match="no invite"):
        store.revoke_invite("abc", NOW)
    join(store, store.create((ADDRESS,), NOW))
    with pytest.raises(UsageError, match=f"used by {ALICE}"):
        store.revoke_invite(store.invites(NOW)[0].id, NOW)


def test_a_forged_proof_is_refused_and_uses_nothing_up(store: InviteStore) -> None:
    line = store.create((ADDRESS,), NOW)
    id_ = read_invite(line, NOW).id
    stolen = invites.prove(read_invite(line, NOW).secret, BOB)  # overheard from Bob
    for proof in (b"", b"x" * 32, stolen):
        with pytest.raises(Refused, match="forged"):
            store.answer(ALICE, invites.requests.encode(JoinRequest(id_, proof, "desk")), NOW)
    with pytest.raises(Refused, match="knows no such invite"):
        store.answer(ALICE, invites.requests.encode(JoinRequest("0" * 16, stolen, "desk")), NOW)
    join(store, line)


@pytest.mark.parametrize("data", [b"", b"\x80", b"x" * 5000])
def test_rubbish_is_malformed(store: InviteStore, data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        store.answer(ALICE, data, NOW)


def test_a_name_that_would_disturb_a_terminal_is_refused(store: InviteStore) -> None:
    line = store.create((ADDRESS,), NOW)
    with pytest.raises(Refused, match="printable"):
        store.answer(ALICE, request(line, name="a\x1b[2Jb"), NOW)


def test_a_revoked_peer_stays_out_even_with_a_new_invite(store: InviteStore) -> None:
    line = store.create((ADDRESS,), NOW)
    certificate = join(store, line)
    data = store.revoke_peer(ALICE, NOW)
    assert data == store.revocations()
    assert known(store).version == 1
    assert "was revoked" in (check_certificate(certificate, SWARM, ALICE, NOW, known(store)) or "")
    for again in (line, store.create((ADDRESS,), NOW)):
        with pytest.raises(Refused, match="was revoked"):
            join(store, again)
    with pytest.raises(Refused, match="was revoked"):
        store.answer(ALICE, invites.requests.encode(RenewRequest(certificate)), NOW)
    assert store.members()[0].revoked_at == NOW
    store.readmit_peer(ALICE)
    assert known(store).version == 2
    assert check_certificate(certificate, SWARM, ALICE, NOW, known(store)) is None
    with pytest.raises(UsageError, match="not revoked"):
        store.readmit_peer(ALICE)


def test_strangers_and_the_owner_cannot_be_revoked(store: InviteStore) -> None:
    with pytest.raises(UsageError, match="not a member"):
        store.revoke_peer(BOB, NOW)
    with pytest.raises(UsageError, match="owner"):
        store.revoke_peer(OWNER.peer_id, NOW)


def test_in_a_public_swarm_anybody_can_be_revoked_and_invites_are_not_used_up(tmp_path: Path) -> None:
    store = InviteStore(tmp_path / "s", OWNER, public_swarm())
    assert read_invite(store.create((ADDRESS,), NOW), NOW).secret == b""
    assert store.invites(NOW) == []
    revocations = Revocations(public_swarm().id, OWNER.peer_id)
    assert revocations.merge(store.revoke_peer(BOB, NOW))
    assert revocations.peers == {BOB}
    store.close()


def test_a_member_renews_its_certificate(store: InviteStore) -> None:
    certificate = join(store, store.create((ADDRESS,), NOW))
    later = NOW + 1000
    answer = invites.answers.decode(store.answer(ALICE, invites.requests.encode(RenewRequest(certificate)), later))
    fresh, old = read_certificate(answer.certificate), read_certificate(certificate)
    assert fresh.expires_at == old.expires_at + 1000
    assert fresh.serial != old.serial
    for peer, shown in ((BOB, certificate), (ALICE, b"")):
        with pytest.raises(Refused):
            store.answer(peer, invites.requests.encode(RenewRequest(shown)), later)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_lifetime_that_is_none_is_refused(store: InviteStore, ttl_s: float) -> None:
    with pytest.raises(UsageError, match="lifetime"):
        store.create((ADDRESS,), NOW, ttl_s)


def test_only_the_owner_opens_the_store(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only the owner"):
        InviteStore(tmp_path / "s", person(1), SWARM)


def test_a_file_that_is_no_store_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "invites.sqlite"
    path.write_bytes(b"no database at all, " * 100)
    with pytest.raises(UsageError, match="cannot open the invites"):
        InviteStore(path, OWNER, SWARM)
    assert path.read_bytes().startswith(b"no database")


def test_the_store_is_private(store: InviteStore, tmp_path: Path) -> None:
    store.create((ADDRESS,), NOW)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


PROCESS = """
import sys, json
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from swarm.people import NOW, OWNER, person, private_swarm
from shoal.swarm.errors import Refused
from shoal.swarm.members.invite import join_request, read_invite
from shoal.swarm.members.invite_store import InviteStore
store = InviteStore(Path(sys.argv[1]), OWNER, private_swarm())
me = person(int(sys.argv[3])).peer_id
print("ready", flush=True)
for line in sys.stdin:
    try:
        store.answer(me, join_request(read_invite(line, NOW), me, "node"), NOW)
        print("in", flush=True)
    except Refused as error:
        print("used" if "already used" in str(error) else error, flush=True)
"""


def start(path: Path, number: int) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(path), tests, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_of_processes_that_redeem_at_once_exactly_one_wins(store: InviteStore, tmp_path: Path) -> None:
    lines = [store.create((ADDRESS,), NOW) for _ in range(10)]
    processes = [start(tmp_path / "invites.sqlite", number) for number in (1, 2, 3)]
    for line in lines:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
    answers = [process.communicate(timeout=60)[0].split("\n")[: len(lines)] for process in processes]
    for outcome in zip(*answers, strict=True):
        assert sorted(outcome) == ["in", "used", "used"], json.dumps(answers)


def test_a_process_killed_while_it_redeems_leaves_a_sound_book(store: InviteStore, tmp_path: Path) -> None:
    lines = [store.create((ADDRESS,), NOW) for _ in range(200)]
    process = start(tmp_path / "invites.sqlite", 1)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("".join(line + "\n" for line in lines))
    process.stdin.flush()
    confirmed = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert confirmed == ["in\n"] * 20
    used = [entry for entry in store.invites(NOW) if entry.state == "used"]
    assert 20 <= len(used) < 200
    assert {entry.used_by for entry in used} == {ALICE}
    assert [member.peer for member in store.members()] == [ALICE]
    join(store, lines[-1], BOB)
