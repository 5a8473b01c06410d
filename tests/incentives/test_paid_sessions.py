"""Whole sessions with ledgers at both ends, in virtual time: what is paid is what came."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import anyio
import pytest
from incentives.paid_world import CLIENT, CREDIT, PRICE, PaidWorld, paid_world
from simulation.session_world import MANIFEST, MODEL, MODEL_ID

from shoal.incentives import offer as offers
from shoal.incentives.bodies import Close
from shoal.incentives.open_limiter import OpenLimiter
from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.identity import Identity
from shoal.swarm.manifest import Manifest
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.metering import Paying, Payment
from shoal.swarm.units import Span

TWO = ((1, "embed+0:3"), (2, "3:6+head"))
FOUR = ((1, "embed+0:3"), (2, "3:6+head"), (3, "embed+0:3"), (4, "3:6+head"))
PROMPT = tuple((7 * n) % 50 + 1 for n in range(100))
EXPECTED = MODEL.expected_tokens(PROMPT, 60)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


async def settled(swarm: PaidWorld) -> None:
    await swarm.settled()
    await anyio.sleep(2)
    for ledger in swarm.ledgers.values():
        assert ledger.failure is None
        assert ledger.store.balances.imbalance() == 0


def income(ticks: int) -> int:
    return ticks * PRICE - -(-ticks * PRICE * 5 // 100)


@pytest.mark.anyio
@pytest.mark.parametrize("new", [1, 28, 29, 60])
async def test_each_hop_is_paid_for_the_full_ticks_that_came(new: int) -> None:
    async with paid_world(*TWO) as swarm:
        tokens, _ = await swarm.generate(new, PROMPT)
        assert tokens == EXPECTED[:new]
        await settled(swarm)
        came = len(PROMPT) + new - 1  # the last token is not fed
        for server in (1, 2):
            account = swarm.account(server)
            assert account.contributed == income(came // 32), "the server has settled alone"
            assert swarm.ledgers[Identity(bytes([server]) * 32).peer_id].store.owed() == []


@pytest.mark.anyio
async def test_the_client_reserves_and_signs_once_for_each_hop() -> None:
    async with paid_world(*TWO) as swarm:
        await swarm.generate(60, PROMPT)
        await settled(swarm)
        store = swarm.ledgers["client"].store
        assert store.chain(CLIENT.public_key).length == 2
        assert store.balances.account(CLIENT.public_key).reserved == 2 * PRICE * (160 // 32)


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(8))
async def test_a_killed_hop_costs_no_token_and_every_other_is_paid(seed: int) -> None:
    chance = random.Random(seed)
    async with paid_world(*FOUR, seed=seed) as swarm:
        killed: list[PeerId] = []

        def kill(busy: list[PeerId]) -> None:
            killed.append(chance.choice(busy))
            swarm.network.kill(killed[0])

        tokens, route = await swarm.generate(60, PROMPT, disturb=(chance.randrange(1, 59), kill))
        assert tokens == EXPECTED
        assert len(route.failovers) == 1
        await settled(swarm)
        paid = [n for n, _ in FOUR if swarm.account(n).contributed == income(159 // 32)]
        alive = {hop.peer for hop in route.hops} - set(killed)
        assert {Identity(bytes([n]) * 32).peer_id for n in paid} >= alive


@dataclass
class Silent:
    """A client that pays nothing after so many ticks."""

    inner: Payment
    ticks: int
    slice_tokens: int | None = 32
    in_advance: bool = True

    async def opening(self, peer: PeerId, session: SessionId, span: Span) -> bytes:
        return await self.inner.opening(peer, session, span)

    def arrived(self, positions: int) -> None:
        self.inner.arrived(min(positions, self.ticks * 32))

    def tick(self) -> bytes:
        return self.inner.tick()

    def word(self) -> bytes:
        return self.inner.word()

    def last(self) -> bytes:
        return self.inner.last()


@dataclass
class SilentPaying:
    inner: Paying
    ticks: int

    def session(self, request: TokenRequest, manifest: Manifest) -> Payment | None:
        payment = self.inner.session(request, manifest)
        return Silent(payment, self.ticks) if payment else None


def stopping(ticks: int) -> Callable[[Paying], Paying]:
    return lambda paying: SilentPaying(paying, ticks)


@pytest.mark.anyio
@pytest.mark.parametrize("ticks", [0, 2, 3])
async def test_a_client_that_stops_paying_is_stopped_with_32_tokens_at_risk(ticks: int) -> None:
    async with paid_world(*TWO, wrapped=stopping(ticks)) as swarm:
        got: list[int] = []
        with pytest.raises(ShoalError, match="not paid"):
            await swarm.generate(60, PROMPT, tokens=got)
        await settled(swarm)
        assert len(got) == max(0, (ticks + 1) * 32 + 1 - len(PROMPT))
        assert swarm.account(1).contributed == income(ticks)


@pytest.mark.anyio
async def test_who_has_no_credit_is_served_free_and_leaves_receipts() -> None:
    async with paid_world(*TWO, credit=0) as swarm:
        tokens, _ = await swarm.generate(60, PROMPT)
        assert tokens == EXPECTED
        await settled(swarm)
        for server in (1, 2):
            ledger = swarm.ledgers[Identity(bytes([server]) * 32).peer_id]
            assert ledger.store.chain(ledger.key).length == 1, "a CLOSE at no price"
            assert swarm.account(server).contributed == 0


def flipped(raw: bytes, at: int) -> bytes:
    """At 20 lies the signature, at 75 the root, at 1 the time."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@dataclass
class Forging(Silent):
    payload: Callable[[bytes], bytes] = bytes

    async def opening(self, peer: PeerId, session: SessionId, span: Span) -> bytes:
        return self.payload(await self.inner.opening(peer, session, span))


@dataclass
class ForgingPaying:
    inner: Paying
    payload: Callable[[bytes], bytes]
    free: bool = False

    def session(self, request: TokenRequest, manifest: Manifest) -> Payment | None:
        payment = self.inner.session(request, manifest)
        if payment is None:
            return None
        return Forging(payment, 100, None if self.free else 32, not self.free, self.payload)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (lambda raw: raw[:-1], "cannot be read"),
        (lambda raw: b"\x93" + raw, "cannot be read"),
        (lambda raw: flipped(raw, 20), "unsigned"),
        (lambda raw: flipped(raw, 75), "unsigned"),
        (lambda raw: flipped(raw, 1), "unsigned"),
    ],
    ids=["short", "malformed", "flipped", "another root", "another time"],
)
async def test_a_forged_payment_opens_nothing(payload: Callable[[bytes], bytes], reason: str) -> None:
    async with paid_world(*TWO, wrapped=lambda paying: ForgingPaying(paying, payload)) as swarm:
        with pytest.raises(ShoalError, match=reason):
            await swarm.generate(60, PROMPT)
        await settled(swarm)
        assert all(not swarm.account(n).contributed for n in (1, 2))


@pytest.mark.anyio
@pytest.mark.parametrize("new", [1, 60])
async def test_a_free_session_waits_for_no_receipt_and_leaves_one_all_the_same(new: int) -> None:
    opened: list[float] = []

    def slow(raw: bytes) -> bytes:
        opened.append(anyio.current_time())
        return raw

    def paying(inner: Paying) -> Paying:
        return ForgingPaying(inner, slow, free=True)

    async with paid_world(*TWO, credit=0, wrapped=paying) as swarm:
        first: list[float] = []
        tokens, _ = await swarm.generate(new, PROMPT, disturb=(1, lambda _busy: first.append(anyio.current_time())))
        assert tokens == EXPECTED[:new]
        await settled(swarm)
        assert len(opened) == 2
        assert min(opened) >= first[0], "signed when the first token had come"
        for server in (1, 2):
            ledger = swarm.ledgers[Identity(bytes([server]) * 32).peer_id]
            (close,) = ledger.store.of(ledger.key)
            assert isinstance(close.body, Close)
            assert close.body.ticks == (len(PROMPT) + new - 1) // 32


@pytest.mark.anyio
async def test_a_forged_receipt_ends_a_free_session_that_has_begun() -> None:
    def paying(inner: Paying) -> Paying:
        return ForgingPaying(inner, lambda raw: flipped(raw, 20), free=True)

    async with paid_world(*TWO, credit=0, wrapped=paying) as swarm:
        got: list[int] = []
        with pytest.raises(ShoalError, match="unsigned"):
            await swarm.generate(60, PROMPT, tokens=got)
        assert EXPECTED[: len(got)] == got
        await settled(swarm)


@pytest.mark.anyio
async def test_a_payment_that_cannot_be_judged_is_served_free_and_its_prompt_does_not_wait_for_ever() -> None:
    def after_a_gap(raw: bytes) -> bytes:
        offer = offers.decode(raw)
        return offers.encode(replace(offer, seq=offer.seq + 9, before=()))

    async with paid_world(*TWO, wrapped=lambda inner: ForgingPaying(inner, after_a_gap)) as swarm:
        tokens, _ = await swarm.generate(60, PROMPT)
        assert tokens == EXPECTED
        await settled(swarm)
        assert all(not swarm.account(n).contributed for n in (1, 2))


@pytest.mark.anyio
async def test_the_same_open_pays_no_second_session() -> None:
    seen: list[bytes] = []

    def again(raw: bytes) -> bytes:
        seen.append(raw)
        return seen[0]

    async with paid_world((1, "all"), wrapped=lambda paying: ForgingPaying(paying, again)) as swarm:
        await swarm.generate(5, PROMPT)
        with pytest.raises(ShoalError, match="unsigned"):
            await swarm.generate(5, PROMPT)  # made anew for another session, it is an OPEN that nobody signed


@pytest.mark.anyio
async def test_a_client_that_opens_too_fast_is_refused_before_its_payment_is_read() -> None:
    async with paid_world((1, "all"), limiter=lambda: OpenLimiter(1.0, 3.0)) as swarm:
        for _ in range(3):
            await swarm.generate(5, PROMPT)
        with pytest.raises(ShoalError, match="too many sessions"):
            await swarm.generate(5, PROMPT)


@pytest.mark.anyio
async def test_a_session_shorter_than_a_tick_is_not_paid() -> None:
    async with paid_world((1, "all")) as swarm:
        await swarm.generate(5, PROMPT[:10])
        await settled(swarm)
        assert swarm.ledgers["client"].store.chain(CLIENT.public_key).length == 0


def test_the_model_of_these_tests_costs_one_credit_a_position() -> None:
    assert MANIFEST.layers == 6
    assert MODEL_ID
    assert CREDIT > 100 * PRICE
