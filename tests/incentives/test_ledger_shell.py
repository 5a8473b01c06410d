"""The shell around the store: one write for many, what is settled late, what a flood costs."""

import threading
import time
from pathlib import Path
from typing import NoReturn

import anyio
import pytest
from msgspec.structs import replace
from simulation.session_world import MANIFEST, MODEL_ID

from shoal.incentives import entry as entries
from shoal.incentives import offer as offers
from shoal.incentives.bodies import Ack, Close, ForkProof, Open
from shoal.incentives.chain import Forked
from shoal.incentives.entry import NO_HASH, Entry
from shoal.incentives.ledger import Ledger
from shoal.incentives.offer import Offer, session_name
from shoal.incentives.payword import PayWords
from shoal.incentives.price import tick_price
from shoal.incentives.session_meter import LedgerMetering
from shoal.incentives.session_payment import LedgerPaying
from shoal.incentives.store import Owed, Store
from shoal.swarm.errors import OutOfMemory, Refused, Unavailable
from shoal.swarm.identifiers import SessionId
from shoal.swarm.identity import Identity
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.messages import Open as SessionOpen
from shoal.swarm.units import Span

NOW = 1_790_000_000
CLIENT, SERVER = (Identity(bytes([n]) * 32) for n in (1, 2))
WORDS = PayWords(bytes(16), 10)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


def ledger_at(path: Path, identity: Identity = SERVER) -> Ledger:
    return Ledger(Store(path), identity, lambda: float(NOW))


def session_of_client(seq: int, prev: bytes, price: int = 0) -> tuple[SessionOpen, Entry]:
    """price: of a tick; 0 in the free lane"""
    name = SessionId(f"{seq:02x}" * 14)
    body = offers.terms(SERVER.public_key, session_name(name), WORDS.root, 100, price)
    entry = entries.write(CLIENT, seq, prev, NOW, body)
    offer = offers.encode(Offer(seq, price > 0, 0 if seq else NOW, entry.signature, WORDS.root))
    terms = (name, MODEL_ID, "float32", Span(0, 8), 100, CLIENT.peer_id, None, None, (), Sampling(), (), offer)
    return SessionOpen(*terms), entry


@pytest.mark.anyio
async def test_entries_that_are_wanted_at_once_form_one_chain(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(ledger.append, Ack(bytes([number]) * 32, 0))
    held = ledger.store.of(SERVER.public_key)
    assert [entry.seq for entry in held] == list(range(50))
    assert {entry.body for entry in held} == {Ack(bytes([number]) * 32, 0) for number in range(50)}
    await ledger.close()


@pytest.mark.anyio
async def test_a_server_that_was_killed_in_a_session_settles_it_when_it_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    store = Store(path)
    body = Open(SERVER.public_key, b"s", WORDS.root, 0, 32, 10, 3600, 0)
    opened = entries.write(CLIENT, 0, NO_HASH, NOW, body)
    store.receive(opened, NOW)
    store.owe_all([Owed(entries.hash_of(opened), 6, WORDS.word(6))])
    store.close()  # as a kill leaves it
    ledger = ledger_at(path)
    settled: list[Close] = []
    ledger.on_settled.append(lambda entry: settled.append(entry.body) if isinstance(entry.body, Close) else None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.run)
        with anyio.fail_after(10):
            while not settled:  # noqa: ASYNC110  the shell has no hook for it
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert settled == [Close(entries.hash_of(opened), 6, WORDS.word(6))]
    await ledger.close()
    assert not Store(path).owed()


@pytest.mark.anyio
async def test_a_client_may_acknowledge_a_settlement_and_complain(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite", CLIENT)
    opened = await ledger.append(Open(SERVER.public_key, b"s", WORDS.root, 0, 32, 10, 3600, 0))
    close = entries.write(SERVER, 0, NO_HASH, NOW, Close(entries.hash_of(opened), 2, WORDS.word(2)))
    await ledger.receive([close])
    acknowledged = await ledger.acknowledge(close, 2)
    assert acknowledged.body == Ack(entries.hash_of(close), 2)
    assert ledger.store.chain(CLIENT.public_key).length == 2
    await ledger.close()


@pytest.mark.anyio
async def test_a_closed_ledger_takes_nothing_more(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    await ledger.close()
    with pytest.raises(Unavailable):
        await ledger.append(Ack(bytes(32), 0))


@pytest.mark.anyio
async def test_a_flood_of_a_hundred_thousand_opens_is_refused_within_the_second_in_which_it_comes(
    tmp_path: Path,
) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    metering = LedgerMetering(ledger, lambda _: MANIFEST, lambda: 100.0)
    request = SessionOpen(
        SessionId("ab" * 14), MODEL_ID, "float32", Span(0, 8), 100, CLIENT.peer_id, None, None, (), Sampling(), (), b"x"
    )
    refused: dict[str, int] = {}
    began = time.process_time()
    for _ in range(100_000):
        try:
            await metering.open(CLIENT.peer_id, request)
        except Refused as error:
            refused[str(error)[:15]] = refused.get(str(error)[:15], 0) + 1
    spent_s = time.process_time() - began
    assert refused == {"the payment can": 400, "too many sessio": 99_600}
    assert spent_s < 2.0, "on a machine that others use too; a tenth of that alone"
    await ledger.close()


@pytest.mark.anyio
async def test_who_is_known_to_have_forked_opens_no_session_even_before_the_proof_is_stored(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    metering = LedgerMetering(ledger, lambda _: MANIFEST, lambda: 100.0)

    request, entry = session_of_client(0, NO_HASH)
    assert await metering.open(CLIENT.peer_id, request) is not None
    ledger.is_forger = lambda author: author == CLIENT.public_key
    with pytest.raises(Refused, match="its standing is gone"):
        await metering.open(CLIENT.peer_id, session_of_client(1, entries.hash_of(entry))[0])
    await ledger.close()


@pytest.mark.anyio
async def test_an_open_that_was_heard_of_before_its_session_came_is_good_and_pays_for_one_session(
    tmp_path: Path,
) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    ledger.store.balances.mint(CLIENT.public_key, 10_000, bytes(32), NOW - 25 * 3600)
    metering = LedgerMetering(ledger, lambda _: MANIFEST, lambda: 100.0)
    request, entry = session_of_client(0, NO_HASH, tick_price(MANIFEST, Span(0, 8)))
    await ledger.receive([entry])  # with what the client showed for another session
    meter = await metering.open(CLIENT.peer_id, request)
    assert meter is not None
    assert metering.paid == {request.session}
    meter.close()
    with pytest.raises(Refused, match="for a session already"):
        await metering.open(CLIENT.peer_id, request)
    await ledger.flush()
    assert await metering.open(CLIENT.peer_id, request) is not None
    assert not metering.paid, "what was set aside is settled: the same payment pays no more"
    await ledger.close()


async def with_credit(path: Path) -> tuple[Ledger, LedgerMetering]:
    ledger = ledger_at(path)
    ledger.store.balances.mint(CLIENT.public_key, 10_000, bytes(32), NOW - 25 * 3600)
    return ledger, LedgerMetering(ledger, lambda _: MANIFEST, lambda: 100.0)


@pytest.mark.anyio
async def test_of_two_sessions_that_come_at_once_with_one_payment_one_is_served(tmp_path: Path) -> None:
    ledger, metering = await with_credit(tmp_path / "ledger.sqlite")
    request, _ = session_of_client(0, NO_HASH, tick_price(MANIFEST, Span(0, 8)))
    answers: list[str] = []

    async def ask() -> None:
        try:
            meter = await metering.open(CLIENT.peer_id, request)
        except Refused as error:
            answers.append(str(error))
        else:
            answers.append("served" if meter is not None else "without books")

    busy, done = threading.Event(), threading.Event()

    def long_write(_: Store) -> None:
        busy.set()
        done.wait(10)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.use, long_write)
        while not busy.is_set():  # noqa: ASYNC110  a thread tells
            await anyio.sleep(0.001)
        tasks.start_soon(ask)
        tasks.start_soon(ask)
        await anyio.sleep(0.05)
        done.set()
    assert sorted(answers) == ["served", "this payment was given for a session already"]
    await ledger.close()


@pytest.mark.anyio
async def test_a_payment_that_came_late_pays_for_no_second_session(tmp_path: Path) -> None:
    ledger, metering = await with_credit(tmp_path / "ledger.sqlite")
    request, _ = session_of_client(0, NO_HASH, tick_price(MANIFEST, Span(0, 8)))
    meter = await metering.open_late(CLIENT.peer_id, replace(request, payment=b""), request.payment)
    assert meter is not None
    assert not metering.paid
    with pytest.raises(Refused, match="for a session already"):
        await metering.open(CLIENT.peer_id, request)
    meter.computed(32)
    meter.take(WORDS.word(1))
    meter.close()
    with pytest.raises(Refused, match="for a session already"):  # it is not settled before this is written
        await metering.open(CLIENT.peer_id, request)
    await ledger.flush()
    assert await metering.open(CLIENT.peer_id, request) is not None
    assert not metering.paid
    await ledger.close()


@pytest.mark.anyio
async def test_after_a_kill_what_was_paid_before_is_neither_spent_again_nor_made_less(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger, metering = await with_credit(path)
    request, opened = session_of_client(0, NO_HASH, tick_price(MANIFEST, Span(0, 8)))
    meter = await metering.open(CLIENT.peer_id, request)
    assert meter is not None
    meter.computed(96)
    meter.take(WORDS.word(3))
    ledger.store.close()  # the process is gone

    ledger, metering = await with_credit(path)
    for payment in (
        metering.open(CLIENT.peer_id, request),
        metering.open_late(CLIENT.peer_id, request, request.payment),
    ):
        with pytest.raises(Refused, match="for a session already"):
            await payment
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.run)
        with anyio.fail_after(10):
            while not ledger.store.of(SERVER.public_key):  # noqa: ASYNC110  the shell writes by itself
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    (close,) = (entry.body for entry in ledger.store.of(SERVER.public_key))
    assert close == Close(entries.hash_of(opened), 3, WORDS.word(3))
    await ledger.close()


@pytest.mark.anyio
async def test_sessions_that_leave_nothing_to_settle_leave_nothing_in_memory(tmp_path: Path) -> None:
    ledger, metering = await with_credit(tmp_path / "ledger.sqlite")
    prev = NO_HASH
    for seq in range(3):
        request, entry = session_of_client(seq, prev)
        meter = await metering.open(CLIENT.peer_id, request)
        assert meter is not None
        with pytest.raises(Refused, match="for a session already"):
            await metering.open(CLIENT.peer_id, request)
        meter.close()
        prev = entries.hash_of(entry)
    assert not metering._unsettled  # noqa: SLF001  what would grow
    await ledger.close()


@pytest.mark.anyio
@pytest.mark.parametrize("in_thread", [True, False])
async def test_credit_that_may_be_spent_since_the_last_entry_pays_for_the_first_session_after_it(
    tmp_path: Path, in_thread: bool
) -> None:
    clock = [float(NOW)]
    ledger = Ledger(Store(tmp_path / "ledger.sqlite"), CLIENT, lambda: clock[0], in_thread=in_thread)
    ledger.store.balances.mint(CLIENT.public_key, 10_000_000, bytes(32), NOW)
    request = TokenRequest(MODEL_ID, tuple(range(1, 65)), 40)
    paying = LedgerPaying(ledger)
    early = paying.session(request, MANIFEST)
    clock[0] += 25 * 3600
    late = paying.session(request, MANIFEST)
    assert early is not None
    assert late is not None
    assert (early.in_advance, late.in_advance) == (False, True)
    assert ledger.glance(CLIENT.public_key) == await ledger.spendable(CLIENT.public_key) > 0
    await ledger.close()


@pytest.mark.anyio
async def test_nothing_is_signed_before_the_others_were_asked_and_what_was_settled_meanwhile_is_kept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(Store(path), SERVER, lambda: float(NOW), may_sign=False)
    body = Open(SERVER.public_key, b"s", WORDS.root, 0, 32, 10, 3600, 0)
    opened = entries.write(CLIENT, 0, NO_HASH, NOW, body)
    fork = entries.write(CLIENT, 0, NO_HASH, NOW + 1, body)
    caught: list[ForkProof] = []
    ledger.on_caught.append(caught.append)
    await ledger.receive([opened])
    with pytest.raises(Unavailable):
        await ledger.append(Ack(bytes(32), 0))
    (verdict,) = await ledger.receive([fork])
    assert isinstance(verdict, Forked)
    assert caught == [verdict.proof]
    close = Close(entries.hash_of(opened), 4, WORDS.word(4))
    ledger.settle(close)
    await ledger.flush()
    assert ledger.store.chain(SERVER.public_key).length == 0
    await ledger.close()  # as a node that is stopped before anybody answered
    again = Ledger(Store(path), SERVER, lambda: float(NOW), may_sign=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(again.run)
        await anyio.wait_all_tasks_blocked()
        assert again.store.chain(SERVER.public_key).length == 0
        again.allow()
        with anyio.fail_after(10):
            while not again.store.chain(SERVER.public_key).length:  # noqa: ASYNC110  the shell has no hook for it
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert [entry.body for entry in again.store.of(SERVER.public_key)] == [close]
    await again.close()


@pytest.mark.anyio
async def test_what_a_restored_backup_takes_back_is_not_settled_again(tmp_path: Path) -> None:
    ledger = Ledger(Store(tmp_path / "ledger.sqlite"), SERVER, lambda: float(NOW), may_sign=False)
    body = Open(SERVER.public_key, b"s", WORDS.root, 0, 32, 10, 3600, 0)
    opened = entries.write(CLIENT, 0, NO_HASH, NOW, body)
    close = Close(entries.hash_of(opened), 4, WORDS.word(4))
    await ledger.receive([opened])
    ledger.store.owe_all([Owed(entries.hash_of(opened), 3, WORDS.word(3))])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ledger.run)
        await anyio.wait_all_tasks_blocked()
        await ledger.receive([entries.write(SERVER, 0, NO_HASH, NOW, close)])  # others have kept it
        ledger.allow()
        await ledger.append(Ack(bytes(32), 0))
        await ledger.flush()
        tasks.cancel_scope.cancel()
    assert [entry.body for entry in ledger.store.of(SERVER.public_key)] == [close, Ack(bytes(32), 0)]
    await ledger.close()


@pytest.mark.anyio
async def test_what_a_full_disk_refused_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_at(tmp_path / "ledger.sqlite")
    closes = [Close(bytes([number]) * 32, 1, WORDS.word(1)) for number in range(3)]

    def full(*_: object) -> NoReturn:
        raise OutOfMemory("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger.store, "append_own", full)
        ledger.settle(closes[0])
        ledger.settle(closes[1])
        await ledger.flush()
        assert isinstance(ledger.failure, OutOfMemory)
    ledger.settle(closes[2])
    await ledger.flush()
    assert ledger.failure is None
    assert [entry.body for entry in ledger.store.of(SERVER.public_key)] == closes
    await ledger.close()
