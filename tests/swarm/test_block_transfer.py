"""The rules of a transfer from several donors, in simulated time: who is asked, who is dropped, what a death costs."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.swarm.errors import MalformedMessage, RemoteFault
from shoal.swarm.identifiers import PeerId
from shoal.swarm.simulated.time import Timeline
from shoal.swarm.transfer import block_transfer
from shoal.swarm.transfer.block_transfer import (
    HEDGE_S,
    MAX_PIECE_BYTES,
    Arrived,
    Ask,
    Block,
    BlockTransfer,
    Dropped,
    Effect,
    Event,
    Failed,
    Joined,
    Postponed,
    Store,
    Tick,
)
from shoal.swarm.transfer.block_transfer_listing import (
    BlockedFile,
    Listing,
    block_bytes_for,
    bundle_id,
    encode_listing,
    hash_blocks,
    read_listing,
)

BLOCK = 1 << 16


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def listing_of(files: dict[str, bytes], block_bytes: int = BLOCK) -> Listing:
    blocked = [BlockedFile(name, len(data), hash_blocks(data, block_bytes)) for name, data in files.items()]
    return Listing("test", b"", block_bytes, tuple(blocked))


@dataclass
class Donor:
    """Serves its own bytes, one question after another; dies or hangs when it is told to."""

    files: dict[str, bytes]
    byte_s: float = 50e6
    latency_s: float = 0.01
    silent_from: float = float("inf")
    dead_from: float = float("inf")
    later_until: float = 0.0
    have: frozenset[Block] | None = None
    free_at: float = 0.0
    asked: int = 0


@dataclass
class World:
    """Carries out a transfer's effects between simulated donors."""

    transfer: BlockTransfer
    donors: dict[PeerId, Donor]
    timeline: Timeline = field(default_factory=Timeline)
    stored: dict[str, bytearray] = field(default_factory=dict)
    dropped: dict[PeerId, Dropped] = field(default_factory=dict)
    done_at: float = float("inf")
    wakes: set[float] = field(default_factory=set)

    def run(self, until: float = 600.0) -> "World":
        for file in self.transfer.listing.files:
            self.stored.setdefault(file.name, bytearray(file.size_bytes))
        for peer, donor in self.donors.items():
            self.tell(Joined(peer, donor.have))
        self.timeline.run(until)
        return self

    def tell(self, event: Event) -> None:
        now = self.timeline.now
        for effect in self.transfer.handle(event, now):
            self._carry_out(effect)
        if self.transfer.done:
            self.done_at = min(self.done_at, now)
        wake_at = self.transfer.wake_at(now)
        if wake_at is not None and wake_at not in self.wakes:
            self.wakes.add(wake_at)
            self.timeline.at(wake_at, self.tell, Tick())

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Store(file, offset, data):
                self.stored[file][offset : offset + len(data)] = data
            case Dropped(donor):
                self.dropped[donor] = effect
            case Ask():
                self._ask(effect)

    def _ask(self, ask: Ask) -> None:
        donor, now = self.donors[ask.donor], self.timeline.now
        index = [file.name for file in self.transfer.listing.files].index(ask.file)
        block = Block(index, ask.offset // self.transfer.listing.block_bytes)
        assert donor.have is None or block in donor.have, "asked for what it has not"
        donor.asked += 1
        begins = max(now + donor.latency_s, donor.free_at)
        if now >= donor.dead_from:
            self.timeline.after(donor.latency_s, self.tell, Failed(ask.donor, ask.ask, "nobody there", "silent"))
            return
        if now < donor.later_until:
            self.timeline.after(donor.latency_s, self.tell, Postponed(ask.donor, ask.ask, 0.2))
            return
        donor.free_at = begins + ask.length / donor.byte_s
        arrives = donor.free_at + donor.latency_s
        if arrives >= min(donor.silent_from, donor.dead_from):
            fails = min(now + 5.0, max(donor.dead_from, now))
            self.timeline.at(fails, self.tell, Failed(ask.donor, ask.ask, "no answer", "silent"))
            return
        data = donor.files[ask.file][ask.offset : ask.offset + ask.length]
        self.timeline.at(arrives, self.tell, Arrived(ask.donor, ask.ask, data))


FILES = {"outer.safetensors": content(2_000_000), "momentum.safetensors": content(700_001, 2)}
ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")


def world(donors: dict[PeerId, Donor], have: set[Block] | None = None) -> World:
    return World(BlockTransfer(listing_of(FILES), have or set()), donors)


def assert_complete(run: World) -> None:
    assert run.transfer.done
    assert {name: bytes(data) for name, data in run.stored.items()} == FILES


def test_every_block_comes_and_every_donor_gives_a_part() -> None:
    run = world({peer: Donor(FILES, byte_s=1e6) for peer in (ALICE, BOB, CAROL)}).run()
    assert_complete(run)
    asked = [donor.asked for donor in run.donors.values()]
    assert min(asked) > max(asked) / 2, asked


def test_three_donors_are_nearly_three_times_as_fast_as_one() -> None:
    alone = world({ALICE: Donor(FILES, byte_s=4e5)}).run().done_at
    three = world({peer: Donor(FILES, byte_s=4e5) for peer in (ALICE, BOB, CAROL)}).run().done_at
    assert three < alone / 2.5


def test_a_slow_donor_does_not_hold_up_a_fast_one() -> None:
    fast = world({ALICE: Donor(FILES, byte_s=2e6)}).run().done_at
    both = world({ALICE: Donor(FILES, byte_s=2e6), BOB: Donor(FILES, byte_s=2e3)}).run()
    assert_complete(both)
    assert both.done_at < fast + HEDGE_S + 0.5


def test_a_corrupt_donor_is_found_at_its_first_bad_block_and_never_asked_again() -> None:
    wrong = {name: bytes(len(data)) for name, data in FILES.items()}
    run = world({ALICE: Donor(FILES, byte_s=1e6), BOB: Donor(wrong, byte_s=1e6)}).run()
    assert_complete(run)
    assert run.dropped[BOB].fault
    assert "bad block" in run.dropped[BOB].reason
    most = 2 * BLOCK // block_transfer.MIN_PIECE_BYTES + 8
    assert run.donors[BOB].asked <= most, "two blocks may be open when the first one proves bad"
    assert ALICE not in run.dropped


@pytest.mark.parametrize("kind", ["killed", "hung"])
@pytest.mark.parametrize("at", [0.0, 0.4, 0.8])
def test_a_donor_that_is_gone_costs_less_than_two_seconds(kind: str, at: float) -> None:
    undisturbed = world({peer: Donor(FILES, byte_s=1e6) for peer in (ALICE, BOB)}).run().done_at
    alone = world({ALICE: Donor(FILES, byte_s=1e6)}).run().done_at
    gone = Donor(FILES, byte_s=1e6)
    if kind == "killed":
        gone.dead_from = at
    else:
        gone.silent_from = at
    run = world({ALICE: Donor(FILES, byte_s=1e6), BOB: gone}).run()
    assert_complete(run)
    share = max(0.0, 1 - at / undisturbed)  # what was left to do, and is now done by one
    assert run.done_at < undisturbed + share * (alone - undisturbed) + 2.0


def test_a_donor_that_never_answers_is_dropped_after_a_few_tries() -> None:
    run = world({ALICE: Donor(FILES, dead_from=0.0)}).run()
    assert run.transfer.stuck
    assert not run.dropped[ALICE].fault
    assert run.donors[ALICE].asked <= 8


def test_a_donor_at_its_limit_is_asked_later_and_loses_nothing() -> None:
    run = world({ALICE: Donor(FILES, later_until=3.0)}).run()
    assert_complete(run)
    assert 3.0 <= run.done_at < 4.5
    assert run.donors[ALICE].asked < 100


def test_a_donor_that_only_ever_postpones_is_given_up() -> None:
    run = world({ALICE: Donor(FILES, later_until=1e9)}).run()
    assert run.transfer.stuck
    assert run.donors[ALICE].asked < 1000


def test_blocks_that_are_here_are_not_asked_for_again() -> None:
    first = world({ALICE: Donor(FILES, byte_s=1e6, dead_from=1.5)}).run()
    assert first.transfer.stuck
    have = first.transfer.kept_blocks
    assert len(have) > 5
    second = World(BlockTransfer(listing_of(FILES), have), {BOB: Donor(FILES)}, stored=first.stored).run()
    assert_complete(second)
    left = sum(map(len, FILES.values())) - len(have) * BLOCK
    assert second.transfer.total_bytes - second.transfer.kept_bytes <= left + BLOCK
    assert second.donors[BOB].asked * MAX_PIECE_BYTES >= left


def test_what_comes_after_its_donor_was_dropped_changes_nothing() -> None:
    transfer = BlockTransfer(listing_of(FILES))
    asks = [effect for effect in transfer.handle(Joined(ALICE), 0.0) if isinstance(effect, Ask)]
    short = transfer.handle(Arrived(ALICE, asks[0].ask, b"short"), 0.1)
    assert [type(effect) for effect in short] == [Dropped]
    assert transfer.handle(Arrived(ALICE, asks[1].ask, bytes(asks[1].length)), 0.2) == []
    assert transfer.handle(Failed(ALICE, asks[1].ask, "late", "silent"), 0.2) == []
    assert transfer.stuck


EVERY = frozenset(block_transfer.all_blocks(listing_of(FILES)))


def test_donors_that_hold_parts_make_up_the_whole() -> None:
    odd = frozenset(block for block in EVERY if block.number % 2)
    run = world({ALICE: Donor(FILES, have=odd), BOB: Donor(FILES, have=EVERY - odd)}).run()
    assert_complete(run)
    assert not run.dropped


def test_what_nobody_holds_is_waited_for_until_somebody_has_it() -> None:
    first = frozenset(block for block in EVERY if block.file == 0)
    run = world({ALICE: Donor(FILES, have=first)})
    run.run(5.0)
    assert run.transfer.stuck
    assert run.transfer.kept_blocks == first
    run.donors[ALICE].have = EVERY
    run.tell(Joined(ALICE, EVERY))
    assert not run.transfer.stuck
    run.timeline.run(10.0)
    assert_complete(run)


def test_only_the_blocks_that_are_wanted_are_asked_for() -> None:
    wanted = {Block(0, 3), Block(0, 7), Block(1, 10)}
    run = World(BlockTransfer(listing_of(FILES), {Block(0, 7)}, wanted), {ALICE: Donor(FILES)}).run()
    assert run.transfer.done
    assert (run.transfer.total_bytes, run.transfer.kept_bytes) == (2 * BLOCK + 44_641, BLOCK)
    assert run.transfer.kept_blocks == wanted
    assert run.donors[ALICE].asked <= 2


def test_receivers_that_begin_together_ask_for_different_blocks_first() -> None:
    firsts = set()
    for seed in range(8):
        transfer = BlockTransfer(listing_of(FILES), order=random.Random(seed))
        ask = next(effect for effect in transfer.handle(Joined(ALICE), 0.0) if isinstance(effect, Ask))
        firsts.add((ask.file, ask.offset))
    assert len(firsts) > 4


def test_the_last_block_of_a_slow_donor_is_taken_over_before_it_is_late() -> None:
    run = World(
        BlockTransfer(listing_of({"f": content(3 << 20)}, 1 << 20)),
        {ALICE: Donor({"f": content(3 << 20)}, byte_s=8e6), BOB: Donor({"f": content(3 << 20)}, byte_s=2e5)},
    ).run()
    assert run.transfer.done
    assert run.done_at < 1.0, "the slow one would need 5 s for its block, and lateness begins after 1 s"


def test_two_donors_that_fall_silent_together_cost_less_than_two_seconds() -> None:
    gone = [Donor(FILES, byte_s=1e6, silent_from=0.3) for _ in range(2)]
    run = world({ALICE: Donor(FILES, byte_s=1e6), BOB: gone[0], CAROL: gone[1]}).run()
    assert_complete(run)
    alone = world({ALICE: Donor(FILES, byte_s=1e6)}).run().done_at
    assert run.done_at < alone + 2.0


def test_an_empty_file_needs_no_donor() -> None:
    transfer = BlockTransfer(listing_of({"empty": b""}))
    assert transfer.done


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_the_donors_do_the_honest_one_brings_it_home(seed: int) -> None:
    draw = random.Random(seed)
    wrong = {name: data[: len(data) // 2] + bytes(len(data) - len(data) // 2) for name, data in FILES.items()}
    donors = {PeerId("honest"): Donor(FILES, byte_s=draw.uniform(2e5, 5e6), latency_s=draw.uniform(0.001, 0.2))}
    for number in range(draw.randint(0, 5)):
        donors[PeerId(f"donor{number}")] = Donor(
            draw.choice([FILES, wrong]),
            byte_s=draw.uniform(1e4, 5e6),
            latency_s=draw.uniform(0.001, 0.2),
            silent_from=draw.choice([float("inf"), draw.uniform(0, 2)]),
            dead_from=draw.choice([float("inf"), draw.uniform(0, 2)]),
            later_until=draw.choice([0.0, draw.uniform(0, 2)]),
        )
        if draw.random() < 0.4:
            donors[PeerId(f"donor{number}")].have = frozenset(draw.sample(sorted(EVERY), draw.randint(0, len(EVERY))))
    run = world(donors).run()
    assert_complete(run)
    liars = {peer for peer, gone in run.dropped.items() if gone.fault}
    assert all(donors[peer].files is wrong for peer in liars)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_without_an_honest_donor_a_transfer_is_done_with_the_right_bytes_or_stuck(seed: int) -> None:
    draw = random.Random(seed)
    wrong = {name: bytes(len(data)) for name, data in FILES.items()}
    donors = {
        PeerId(f"donor{number}"): Donor(
            draw.choice([FILES, wrong]),
            byte_s=draw.uniform(1e4, 5e6),
            latency_s=draw.uniform(0.001, 0.2),
            silent_from=draw.choice([float("inf"), draw.uniform(0, 4)]),
            dead_from=draw.choice([float("inf"), draw.uniform(0, 4)]),
            later_until=draw.choice([0.0, draw.uniform(0, 2), float("inf")]),
            have=frozenset(draw.sample(sorted(EVERY), draw.randint(0, len(EVERY)))),
        )
        for number in range(draw.randint(0, 5))
    }
    run = world(donors).run(1200.0)
    assert run.transfer.done or run.transfer.stuck
    for block in run.transfer.kept_blocks:
        name = run.transfer.listing.files[block.file].name
        part = slice(block.number * BLOCK, (block.number + 1) * BLOCK)
        assert bytes(run.stored[name][part]) == FILES[name][part]


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        (lambda file: BlockedFile(file.name, file.size_bytes + BLOCK * 1000, file.blocks), "blocks for the"),
        (lambda file: BlockedFile(file.name, -1, ()), "blocks for the"),
        (lambda file: BlockedFile("../escape", file.size_bytes, file.blocks), "a file called"),
        (lambda file: BlockedFile(".hidden", file.size_bytes, file.blocks), "a file called"),
        (lambda file: BlockedFile(file.name, file.size_bytes, tuple(b[:8] for b in file.blocks)), "not sha256"),
    ],
)
def test_a_listing_that_lies_about_its_files_is_refused(lie: Callable[[BlockedFile], BlockedFile], named: str) -> None:
    honest = listing_of(FILES)
    data = encode_listing(Listing("test", b"", BLOCK, (lie(honest.files[0]),)))
    with pytest.raises(MalformedMessage, match=named):
        read_listing(data)


@pytest.mark.parametrize("size", [0, 100, 3 << 16, 1 << 40])
def test_a_listing_with_blocks_of_a_strange_size_is_refused(size: int) -> None:
    with pytest.raises(MalformedMessage, match="blocks of"):
        read_listing(encode_listing(Listing("test", b"", size, listing_of(FILES).files)))


def test_a_listing_has_one_name() -> None:
    data = encode_listing(listing_of(FILES))
    assert read_listing(data, bundle_id(data)) == listing_of(FILES)
    with pytest.raises(RemoteFault, match="another hash"):
        read_listing(encode_listing(listing_of({"other": b"x"})), bundle_id(data))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_listing_or_malformed(data: bytes) -> None:
    try:
        assert encode_listing(read_listing(data)) == data
    except MalformedMessage:
        pass


@pytest.mark.parametrize(("total", "size"), [(0, 1 << 16), (1 << 24, 1 << 16), (1 << 26, 1 << 18), (1 << 50, 1 << 22)])
def test_blocks_grow_with_what_they_make_up(total: int, size: int) -> None:
    assert block_bytes_for(total) == size


def test_hashes_are_of_the_blocks() -> None:
    assert listing_of(FILES).files[0].blocks[0] == hashlib.sha256(FILES["outer.safetensors"][:BLOCK]).digest()
