"""Bundles fetched over member calls into files: from several donors, after a cut, past liars and full disks."""

import errno
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from swarm.bundles import BLOCK, AtOnce, OneShelf, donor_of, member, read_at_once

from shoal.swarm.errors import MalformedMessage, OutOfMemory, Refused, Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.transfer.block_transfer import Dropped
from shoal.swarm.transfer.block_transfer_donor import BlockDonor, Bundle, RateLimit
from shoal.swarm.transfer.block_transfer_fetch import BlockFetcher, Holders, Search, Waiting
from shoal.swarm.transfer.block_transfer_folder import BlockFolder
from shoal.swarm.transfer.block_transfer_listing import BundleId, Listing, blocked_file, bundle_id, encode_listing
from shoal.swarm.transfer.block_transfer_messages import ANSWERS, METHOD, REQUESTS, BlockAnswer, BlockRequest
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions

pytestmark = pytest.mark.anyio
LINKS = Conditions(latency_s=(0.02, 0.03), bandwidth_byte_s=2e6)
JOINER, ALICE, BOB, CAROL = (PeerId(name) for name in ("joiner", "alice", "bob", "carol"))


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for number, size in enumerate((3_000_000, 500_001, 0)):
        (folder / f"part{number}.safetensors").write_bytes(random.Random(number).randbytes(size))
    return folder


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def fetcher(network: MemoryNetwork) -> BlockFetcher:
    return BlockFetcher(member(network.join(JOINER)), threads=AtOnce())


async def donors_of(network: MemoryNetwork, folder: Path, *peers: PeerId) -> tuple[BundleId, Listing]:
    shelf = OneShelf()
    found = shelf.put(folder)
    for peer in peers:
        await donor_of(shelf).serve(member(network.join(peer)))
    return found


async def test_a_bundle_comes_from_three_donors_and_is_what_they_have(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, _ = await donors_of(network, model, ALICE, BOB, CAROL)
        fetch = fetcher(network)
        listing = await fetch.listing(bundle, [ALICE])
        seen: list[tuple[int, int]] = []
        into = BlockFolder(tmp_path / "in", listing)
        report = await fetch.bring(bundle, listing, [ALICE, BOB, CAROL], into, lambda *at: seen.append(at))
    assert same_files(model, tmp_path / "in")
    assert report.total_bytes == 3_500_001
    assert seen[-1] == (report.total_bytes, report.total_bytes)
    assert seen == sorted(seen)
    assert report.seconds < 1.0, "one donor's link would need 1.75 s"
    assert set(report.given_bytes) == {ALICE, BOB, CAROL}
    assert not report.dropped


async def test_a_cut_download_goes_on_where_it_stopped(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE, BOB)
        fetch = fetcher(network)
        with anyio.move_on_after(0.6):
            await fetch.bring(bundle, listing, [ALICE], BlockFolder(tmp_path / "in", listing))
        again = BlockFolder(tmp_path / "in", listing)
        report = await fetch.bring(bundle, listing, [ALICE], again)
        assert same_files(model, tmp_path / "in")
        assert 500_000 < report.kept_bytes < 3_000_000
        assert sum(report.given_bytes.values()) <= report.total_bytes - report.kept_bytes + BLOCK
        third = await fetch.bring(bundle, listing, [], again)
        assert third.kept_bytes == third.total_bytes, "what is whole needs no donor"


async def test_bytes_on_disk_that_a_cut_left_half_written_are_fetched_again(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE)
        shutil.copytree(model, tmp_path / "in")
        damaged = bytearray((model / "part0.safetensors").read_bytes())
        damaged[BLOCK * 3 + 5] ^= 1
        (tmp_path / "in" / "part0.safetensors").write_bytes(bytes(damaged) + b"and more than there should be")
        report = await fetcher(network).bring(bundle, listing, [ALICE], BlockFolder(tmp_path / "in", listing))
    assert same_files(model, tmp_path / "in")
    assert sum(report.given_bytes.values()) == BLOCK


async def test_a_liar_is_dropped_and_a_killed_donor_costs_less_than_two_seconds(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE, BOB)

        async def lie(_: PeerId, body: bytes) -> bytes:
            request = REQUESTS.decode(body)
            return ANSWERS.encode(BlockAnswer(1, bytes(request.length), 0.0))

        await member(network.join(CAROL)).answer(METHOD, lie)
        fetch = fetcher(network)

        async def kill() -> None:
            await anyio.sleep(0.3)
            network.kill(BOB)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            into = BlockFolder(tmp_path / "in", listing)
            report = await fetch.bring(bundle, listing, [CAROL, BOB, ALICE], into)
    assert same_files(model, tmp_path / "in")
    assert report.faulty == (CAROL,)
    assert 0 < report.given_bytes[BOB] < 1_000_000
    assert report.seconds < 1.75 + 2.0


@pytest.mark.parametrize("way", ["hang", "partition"])
async def test_a_donor_that_falls_silent_costs_less_than_two_seconds(way: str, model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE, BOB)
        fetch = fetcher(network)

        async def fall_silent() -> None:
            await anyio.sleep(0.3)
            if way == "hang":
                network.hang(BOB)
            else:
                network.partition(JOINER, BOB)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fall_silent)
            report = await fetch.bring(bundle, listing, [BOB, ALICE], BlockFolder(tmp_path / "in", listing))
    assert same_files(model, tmp_path / "in")
    assert report.seconds < 1.75 + 2.0


async def test_when_nobody_is_left_the_line_says_why_and_what_has_come_stays(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE)
        fetch = fetcher(network)

        async def kill() -> None:
            await anyio.sleep(0.5)
            network.kill(ALICE)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            with pytest.raises(Unavailable, match=r"no donor of .* is left \(alice: .*nobody there.* bytes are here"):
                await fetch.bring(bundle, listing, [ALICE], BlockFolder(tmp_path / "in", listing))
        assert BlockFolder(tmp_path / "in", listing).prepare()


async def test_a_donor_without_the_bundle_is_not_asked_twice(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE)
        await donor_of(OneShelf()).serve(member(network.join(BOB)))
        into = BlockFolder(tmp_path / "in", listing)
        report = await fetcher(network).bring(bundle, listing, [BOB, ALICE], into)
    assert "not here" in report.dropped[BOB]
    assert not report.faulty


async def test_a_donors_rate_limit_is_kept(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=Conditions(latency_s=(0.001, 0.002))) as network:
        shelf = OneShelf()
        bundle, listing = shelf.put(model)
        await donor_of(shelf, rate_byte_s=500_000).serve(member(network.join(ALICE)))
        report = await fetcher(network).bring(bundle, listing, [ALICE], BlockFolder(tmp_path / "in", listing))
    assert 3.5e6 / 5e5 - 1 < report.seconds < 3.5e6 / 5e5 + 1
    assert not report.dropped


async def test_a_donor_serves_so_many_at_once_and_tells_the_others_to_come_again(model: Path) -> None:
    shelf = OneShelf()
    bundle, _ = shelf.put(model)
    now = 0.0
    donor = BlockDonor((shelf,), 1e9, lambda: now, read_at_once, readers=2)

    async def ask(peer: PeerId) -> BlockAnswer:
        return ANSWERS.decode(
            await donor.answer(peer, REQUESTS.encode(BlockRequest(bundle, "part0.safetensors", 0, 9)))
        )

    assert [len((await ask(peer)).data) for peer in (ALICE, BOB, CAROL)] == [9, 9, 0]
    assert 0 < (await ask(CAROL)).wait_s <= 3.0
    now = 2.0
    assert len((await ask(ALICE)).data) == 9
    now = 3.5
    assert len((await ask(CAROL)).data) == 9, "bob has not asked for 3 s"


async def test_a_part_that_a_donor_does_not_hold_is_refused(model: Path) -> None:
    shelf = OneShelf()
    bundle, _ = shelf.put(model)
    whole = shelf.bundles[bundle]
    held = {"part0.safetensors": [(0, BLOCK), (3 * BLOCK, 5 * BLOCK)]}
    shelf.bundles[bundle] = Bundle(whole.listing, whole.files, held)
    donor = donor_of(shelf)
    for start, here in ((0, True), (BLOCK - 5, False), (BLOCK, False), (3 * BLOCK, True), (5 * BLOCK - 10, True)):
        request = REQUESTS.encode(BlockRequest(bundle, "part0.safetensors", start, 10))
        if here:
            assert len(ANSWERS.decode(await donor.answer(ALICE, request)).data) == 10
        else:
            with pytest.raises(Refused, match="not here"):
                await donor.answer(ALICE, request)


async def test_a_transfer_waits_for_a_donor_and_goes_on_when_one_comes(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE, BOB)
        there: list[PeerId] = []
        told: list[Dropped | Waiting] = []

        async def holders() -> Holders:
            return dict.fromkeys(there)

        async def come_and_go() -> None:
            await anyio.sleep(0.3)
            network.kill(ALICE)
            await anyio.sleep(30)
            there.append(BOB)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(come_and_go)
            into, search = BlockFolder(tmp_path / "in", listing), Search(holders, 60.0)
            report = await fetcher(network).bring(bundle, listing, [ALICE], into, search=search, told=told.append)
    assert same_files(model, tmp_path / "in")
    assert [type(what) for what in told] == [Dropped, Waiting]
    assert set(report.given_bytes) == {ALICE, BOB}


async def test_a_transfer_that_nobody_comes_to_ends_after_its_patience(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model)

        async def nobody() -> Holders:
            return {}

        began = anyio.current_time()
        with pytest.raises(Unavailable, match="none was known"):
            await fetcher(network).bring(
                bundle, listing, [], BlockFolder(tmp_path / "in", listing), search=Search(nobody, 60.0)
            )
        assert 60 < anyio.current_time() - began < 65


async def test_a_listing_larger_than_agreed_on_is_not_taken(model: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE)
        fetch = fetcher(network)
        size = len(encode_listing(listing))
        assert await fetch.listing(bundle, [ALICE], size) == listing
        with pytest.raises(Unavailable, match="more than was agreed on"):
            await fetch.listing(bundle, [ALICE], size - 1)


async def test_a_peer_that_promises_a_huge_listing_gets_nowhere() -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        calls = 0

        async def promise(_: PeerId, __: bytes) -> bytes:
            nonlocal calls
            calls += 1
            return ANSWERS.encode(BlockAnswer(1 << 40, b"x" * 1000, 0.0))

        await member(network.join(ALICE)).answer(METHOD, promise)
        with pytest.raises(Unavailable, match="more than was agreed on"):
            await fetcher(network).listing(BundleId("0" * 64), [ALICE])
        assert calls == 1


@pytest.mark.parametrize(
    "request_",
    [
        BlockRequest(BundleId("x"), "f", 0, 0),
        BlockRequest(BundleId("x"), "f", -1, 10),
        BlockRequest(BundleId("x"), "f", 0, 1 << 30),
    ],
)
async def test_a_donor_refuses_strange_requests(request_: BlockRequest) -> None:
    donor = donor_of(OneShelf())
    with pytest.raises(MalformedMessage):
        await donor.answer(ALICE, REQUESTS.encode(request_))
    with pytest.raises(MalformedMessage):
        await donor.answer(ALICE, b"\xc1")


async def test_a_donor_whose_file_is_gone_or_shorter_says_so(model: Path) -> None:
    shelf = OneShelf()
    bundle, _ = shelf.put(model)
    donor = donor_of(shelf)
    request = REQUESTS.encode(BlockRequest(bundle, "part0.safetensors", 0, 1000))
    assert ANSWERS.decode(await donor.answer(ALICE, request)).data == (model / "part0.safetensors").read_bytes()[:1000]
    (model / "part0.safetensors").write_bytes(b"short")
    with pytest.raises(Refused, match="damaged"):
        await donor.answer(ALICE, request)
    (model / "part0.safetensors").unlink()
    with pytest.raises(Refused, match="not here any more"):
        await donor.answer(ALICE, request)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow beyond a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_disk_that_takes_no_more_is_told_in_one_line(model: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE)
        fetch, into = fetcher(network), BlockFolder(tmp_path / "in", listing)
        with files_up_to(1_000_000), pytest.raises(OutOfMemory, match="cannot write to"):
            await fetch.bring(bundle, listing, [ALICE], into)
        report = await fetch.bring(bundle, listing, [ALICE], into)
    assert report.total_bytes == 3_500_001
    assert same_files(model, tmp_path / "in")


class FillsUp(BlockFolder):
    """Takes five blocks."""

    stored = 0

    def store(self, file: str, offset: int, data: bytes) -> None:
        self.stored += 1
        if self.stored > 5:
            raise OutOfMemory("the disk is full: cannot write")
        super().store(file, offset, data)


async def test_a_disk_that_fills_up_on_the_way_ends_the_transfer_and_keeps_what_came(
    model: Path, tmp_path: Path
) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        bundle, listing = await donors_of(network, model, ALICE)
        fetch = fetcher(network)
        with pytest.raises(OutOfMemory, match="the disk is full"):
            await fetch.bring(bundle, listing, [ALICE], FillsUp(tmp_path / "in", listing))
        report = await fetch.bring(bundle, listing, [ALICE], BlockFolder(tmp_path / "in", listing))
    assert report.kept_bytes == 5 * BLOCK
    assert same_files(model, tmp_path / "in")


async def test_what_does_not_fit_on_the_disk_is_not_begun(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = Listing("test", b"", BLOCK, (blocked_file(model / "part0.safetensors", BLOCK),))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))  # noqa: SLF001
    with pytest.raises(OutOfMemory, match="2 MiB are to come"):
        BlockFolder(tmp_path / "in", listing).prepare()


async def test_a_full_disk_says_that_it_is_full(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Listing("test", b"", BLOCK, (blocked_file(model / "part0.safetensors", BLOCK),))
    into = BlockFolder(tmp_path / "in", listing)
    into.prepare()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutOfMemory, match=r"the disk is full.*what has come is kept"):
        into.store("part0.safetensors", 0, b"x")


def test_a_rate_limit_gives_its_rate_and_no_more() -> None:
    limit, now, given = RateLimit(1000.0), 0.0, 0
    while now < 10:
        wait_s = limit.take(100, now)
        given += 0 if wait_s else 100
        now += wait_s
    assert 10_000 <= given <= 10_000 + 250 + 100


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="gives nothing"):
        RateLimit(0)


def test_a_listing_names_its_bundle(model: Path) -> None:
    bundle, listing = OneShelf().put(model)
    assert bundle_id(encode_listing(listing)) == bundle
