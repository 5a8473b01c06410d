"""KV chunks in two tiers: budgets, pins, what survives a restart, and what a bad disk does."""

import os
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.kv.chunk_index import Label
from shoal.swarm.kv.chunk_store import ChunkStore
from shoal.swarm.prefixes.prefix_chain import Address

ME, OTHER = PeerId("me"), PeerId("other")


def place(number: int) -> Address:
    return Address(number.to_bytes(16))


def label(number: int = 0, maker: PeerId = ME, *, shared: bool = True) -> Label:
    return Label(ModelId("m" * 64), "lossless", maker, shared, place(0), number)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_the_least_recently_used_goes_first_and_the_budget_holds() -> None:
    store = ChunkStore(memory_bytes=300)
    for number in range(3):
        await store.put(place(number), label(number), bytes(100))
    assert await store.get(place(0)) is not None
    await store.put(place(3), label(3), bytes(100))
    assert [store.find(place(n)) is not None for n in range(4)] == [True, False, True, True]
    assert store.memory.used_bytes == 300
    await store.put(place(4), label(4), bytes(301))
    assert store.find(place(4)) is None
    assert store.memory.chunks == 3


@pytest.mark.anyio
async def test_of_a_prefix_the_last_chunks_go_first() -> None:
    store = ChunkStore(memory_bytes=300)
    for number in range(3):
        await store.put(place(number), label(number), bytes(100))
    store.used([place(0), place(1), place(2)])
    await store.put(place(9), label(), bytes(100))
    assert [store.find(place(n)) is not None for n in range(3)] == [True, True, False]


@pytest.mark.anyio
async def test_what_is_pinned_stays() -> None:
    store = ChunkStore(memory_bytes=200)
    store.pin([place(0), place(1)])
    await store.put(place(0), label(), bytes(100))
    await store.put(place(1), label(), bytes(100))
    await store.put(place(2), label(), bytes(100))
    assert store.find(place(2)) is None
    store.unpin([place(0), place(1)])
    await store.put(place(2), label(), bytes(100))
    assert store.find(place(0)) is None
    assert store.find(place(2)) is not None


@pytest.mark.anyio
async def test_the_disk_tier_survives_a_restart_and_its_budget_holds(tmp_path: Path) -> None:
    first = ChunkStore(0, tmp_path / "kv", 10_000)
    await first.restore()
    for number in range(4):
        await first.put(place(number), label(number), bytes([number]) * 1000)
        os.utime(tmp_path / "kv" / f"{place(number).hex()}.kv", (number, number))
    assert first.memory.chunks == 0
    second = ChunkStore(10_000, tmp_path / "kv", 3000)
    await second.restore()
    assert second.disk.chunks == 2
    assert second.disk.used_bytes <= 3000
    assert len(list((tmp_path / "kv").iterdir())) == 2
    found = await second.get(place(3))
    assert found is not None
    assert found.payload == bytes([3]) * 1000
    assert found.label == label(3)
    assert second.memory.chunks == 1


@pytest.mark.anyio
async def test_foreign_half_written_and_damaged_files_are_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    store = ChunkStore(0, folder, 10_000)
    await store.restore()
    for number in range(3):
        await store.put(place(number), label(number), bytes(500))
    paths = [folder / f"{place(number).hex()}.kv" for number in range(3)]
    (folder / "notes.txt").write_text("not ours")
    (folder / f".{place(9).hex()}.abcd").write_bytes(b"half")
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    damaged = bytearray(paths[1].read_bytes())
    damaged[-200] ^= 1
    paths[1].write_bytes(damaged)
    again = ChunkStore(0, folder, 10_000)
    await again.restore()
    assert sorted(folder.iterdir()) == sorted(paths[1:])
    assert await again.get(place(0)) is None
    assert await again.get(place(1)) is None
    assert not paths[1].exists()
    assert await again.get(place(2)) is not None


@pytest.mark.anyio
async def test_a_file_under_another_name_is_not_taken_for_that_chunk(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    store = ChunkStore(0, folder, 10_000)
    await store.restore()
    await store.put(place(1), label(), bytes(500))
    (folder / f"{place(1).hex()}.kv").rename(folder / f"{place(2).hex()}.kv")
    again = ChunkStore(0, folder, 10_000)
    await again.restore()
    assert again.disk.chunks == 0


@pytest.mark.anyio
async def test_a_disk_that_cannot_be_written_is_told_once_and_memory_goes_on(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("a file where the folder should be")
    told: list[str] = []
    store = ChunkStore(1000, tmp_path / "kv", 10_000, told.append)
    await store.restore()
    for number in range(3):
        await store.put(place(number), label(number), bytes(100))
    assert len(told) == 1
    assert "memory only" in told[0]
    assert store.memory.chunks == 3


@pytest.mark.anyio
async def test_a_disk_that_becomes_full_is_told_once_and_what_lies_there_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    store = ChunkStore(0, tmp_path / "kv", 10_000, told.append)
    await store.restore()
    await store.put(place(0), label(), bytes(100))

    def full(_: Path, __: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for number in (1, 2, 3):
        await store.put(place(number), label(number), bytes(100))
    assert told == ["KV chunks are kept in memory only: No space left on device"]
    assert await store.get(place(0)) is not None
    assert len(list((tmp_path / "kv").iterdir())) == 1


@pytest.mark.anyio
async def test_what_is_dropped_is_gone_from_both_tiers(tmp_path: Path) -> None:
    store = ChunkStore(1000, tmp_path / "kv", 10_000)
    await store.restore()
    await store.put(place(0), label(), bytes(100))
    await store.put(place(1), label(maker=OTHER), bytes(100))
    assert await store.drop(lambda _, kept: kept.maker == OTHER) == 1
    assert store.find(place(1)) is None
    assert len(list((tmp_path / "kv").iterdir())) == 1


@pytest.mark.anyio
async def test_many_writers_at_once_keep_to_the_budget(tmp_path: Path) -> None:
    store = ChunkStore(0, tmp_path / "kv", 3000)
    await store.restore()
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(store.put, place(number), label(number), bytes(400))
    files = list((tmp_path / "kv").iterdir())
    assert store.disk.chunks == len(files)
    assert store.disk.used_bytes <= 3000


@pytest.mark.anyio
async def test_what_is_dropped_while_it_is_written_or_read_does_not_come_back(tmp_path: Path) -> None:
    store = ChunkStore(1000, tmp_path / "kv", 10_000)
    await store.restore()
    for _ in range(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.put, place(0), label(), bytes(100))
            await anyio.lowlevel.checkpoint()
            await store.drop(lambda _, __: True)
        assert not list((tmp_path / "kv").iterdir())
    await store.put(place(0), label(), bytes(100))
    again = ChunkStore(1000, tmp_path / "kv", 10_000)
    await again.restore()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(again.get, place(0))
        await anyio.lowlevel.checkpoint()
        await again.drop(lambda _, __: True)
    assert again.find(place(0)) is None


@pytest.mark.anyio
async def test_a_chunk_that_no_longer_fits_leaves_no_file_of_its_former_self(tmp_path: Path) -> None:
    """A lossy chunk is replaced by an exact one, which is larger than the disk's budget."""
    store = ChunkStore(memory_bytes=1000, folder=tmp_path / "kv", disk_bytes=500)
    await store.restore()
    lossy = Label(ModelId("m" * 64), "default", OTHER, True, place(0), 0)
    await store.put(place(0), lossy, bytes(50))
    assert len(list((tmp_path / "kv").iterdir())) == 1
    await store.put(place(0), label(0), bytes(900))
    assert (store.disk.chunks, store.disk.used_bytes) == (0, 0)
    assert not list((tmp_path / "kv").iterdir())
    found = await store.get(place(0))
    assert found is not None
    assert found.label.quality == "lossless"
