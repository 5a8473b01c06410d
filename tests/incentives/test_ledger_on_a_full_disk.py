"""A node whose disk is full serves on, is paid, and writes what it can when there is room."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from incentives.test_ledger_shell import CLIENT, NOW, SERVER, WORDS, session_of_client
from simulation.session_world import MANIFEST
from structlog.testing import capture_logs
from training.full_disk import files_up_to

from shoal.incentives import entry as entries
from shoal.incentives import ledger as shell
from shoal.incentives import store as stores
from shoal.incentives.bodies import Ack, Close, Open
from shoal.incentives.entry import NO_HASH, Entry
from shoal.incentives.ledger import Ledger
from shoal.incentives.session_meter import LedgerMetering
from shoal.incentives.store import Store
from shoal.swarm.errors import OutOfMemory

CREDIT, PRICE = 1_000_000, 8 * 32


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@contextmanager
def full() -> Iterator[None]:
    """No file of this process can grow any more, write-ahead logs included."""
    with files_up_to(1), capture_logs():  # what tests print goes to a file as well
        yield


def opens(count: int) -> list[Entry]:
    found: list[Entry] = []
    for seq in range(count):
        body = Open(SERVER.public_key, bytes([seq + 1]), WORDS.root, 0, 32, 10, 3600, 0)
        found.append(entries.write(CLIENT, seq, entries.hash_of(found[-1]) if found else NO_HASH, NOW, body))
    return found


@pytest.mark.anyio
async def test_sessions_on_a_full_disk_are_served_bounded_and_paid_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "RETRY_S", 0.1)
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(Store(path), SERVER, lambda: float(NOW))
    ledger.store.balances.mint(CLIENT.public_key, CREDIT, bytes(32), NOW - 25 * 3600)
    list(ledger.store.balances.advance(CLIENT.public_key, NOW))
    metering = LedgerMetering(ledger, lambda _: MANIFEST, anyio.current_time)
    request, opened = session_of_client(0, NO_HASH, 32)
    with full():
        meter = await metering.open(CLIENT.peer_id, request)
        assert meter is not None
        assert request.session in metering.paid, "what was set aside is known without a disk"
        for tick in range(1, 4):
            await meter.admit(32)
            meter.computed(32)
            meter.take(WORDS.word(tick))
        meter.close()
        await ledger.flush()
        assert isinstance(ledger.failure, OutOfMemory)
        with pytest.raises(OutOfMemory):
            await ledger.append(Ack(bytes(32), 0))  # nothing is signed that is not on the disk
        assert ledger.store.last() == 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.run)
        with anyio.fail_after(10):
            while ledger.store.last() < 2:  # noqa: ASYNC110  it tries again by itself
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    assert ledger.failure is None
    assert ledger.store.of(CLIENT.public_key) == [opened]
    (close,) = (entry.body for entry in ledger.store.of(SERVER.public_key))
    assert close == Close(entries.hash_of(opened), 3, WORDS.word(3))
    assert ledger.store.balances.account(SERVER.public_key).contributed == 3 * 32 - -(-3 * 32 * 5 // 100)
    await ledger.close()


def test_what_waits_is_known_at_once_and_is_the_same_ledger_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    store, theirs = Store(path), opens(6)
    store.receive_all(theirs[:2], NOW)
    with full():
        store.receive_all(theirs[2:4], NOW)
        store.receive_all(theirs[4:], NOW)
        assert store.is_full
        assert store.of(CLIENT.public_key) == theirs
        assert store.of(CLIENT.public_key, 1, 4) == theirs[1:4]
        assert store.find(CLIENT.public_key, 5) == theirs[5]
        assert store.receive(theirs[4], NOW) == stores.Refused("known")
        assert len(store.balances.reservations) == 6
        with pytest.raises(OutOfMemory):
            store.append_own(SERVER, [Ack(bytes(32), 0)], NOW)
        assert store.of(SERVER.public_key) == []
        assert store.of(CLIENT.public_key) == theirs, "a refused own entry takes nothing else away"
    store.append_own(SERVER, [Ack(bytes(32), 0)], NOW)
    assert not store.is_full
    rows = stores.projection.rows(store.balances)
    store.close()
    again = Store(path)
    assert not again.drifted
    assert [stored.entry for stored in again.all()] == [*theirs, *again.of(SERVER.public_key)]
    assert stores.projection.rows(again.balances) == rows
    again.close()


def test_a_process_that_dies_on_a_full_disk_has_lost_what_waited_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    store, theirs = Store(path), opens(4)
    store.receive_all(theirs[:2], NOW)
    with full():
        store.receive_all(theirs[2:], NOW)
        store.close()
    again = Store(path)
    assert not again.drifted
    assert again.of(CLIENT.public_key) == theirs[:2]
    again.receive_all(theirs[2:], NOW)
    assert again.of(CLIENT.public_key) == theirs
    again.close()


def test_no_more_waits_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MOST_WAITING", 3)
    path = tmp_path / "ledger.sqlite"
    store, theirs = Store(path), opens(6)
    with full():
        store.receive_all(theirs[:3], NOW)
        with pytest.raises(OutOfMemory):
            store.receive_all(theirs[3:], NOW)
        assert store.of(CLIENT.public_key) == theirs[:3]
    store.receive_all(theirs[3:], NOW)
    assert store.of(CLIENT.public_key) == theirs
    store.close()
