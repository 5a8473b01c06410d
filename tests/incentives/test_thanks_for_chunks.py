"""Who gave chunks of a prefix is thanked for those that were found good: in credit, or as a favour."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import anyio
import pytest
from incentives.paid_world import CREDIT, PRICE, PaidWorld, paid_world
from simulation.session_world import MANIFEST, MODEL, MODEL_ID
from swarm.people import person

from shoal.compression.kv_levels import CHUNK_TOKENS, KvLevel
from shoal.incentives import chunk_thanks, payword
from shoal.incentives import entry as entries
from shoal.incentives.balances import BURN_PERCENT
from shoal.incentives.bodies import Open
from shoal.incentives.chunk_thanks import GivenChunks, Thanks, chunk_price, is_for_chunks
from shoal.incentives.entry import Entry
from shoal.incentives.explanation import entry_sentence, steps
from shoal.incentives.ledger import Ledger
from shoal.incentives.payword import PayWords
from shoal.incentives.prefix_accounts import SILENT_S, TRIES, PrefixAccounts
from shoal.incentives.price import tick_price
from shoal.incentives.session_meter import CatchUp
from shoal.incentives.store import Store
from shoal.swarm.errors import Refused, TimedOut
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.identity import Identity
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import Route, TokenRequest
from shoal.swarm.sessions.messages import Open as SessionOpen
from shoal.swarm.transport import CallHandler
from shoal.swarm.units import Span

PROMPT = tuple((7 * n + n // 9) % 50 + 1 for n in range(10 * CHUNK_TOKENS + 10))
NEW = 20
EXPECTED = MODEL.expected_tokens(PROMPT, NEW)
if TYPE_CHECKING:
    from shoal.swarm.members.member_calls import MemberCalls

NOW = 1_790_000_000
DONOR, TAKER = (Identity(bytes([number]) * 32) for number in (1, 2))


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


async def ask(swarm: PaidWorld, without: Identity) -> Route:
    assert swarm.driver is not None
    request = TokenRequest(MODEL_ID, PROMPT, NEW, share_prefix=True, exclude=frozenset({without.peer_id}))
    async with swarm.driver.generate(request) as stream:
        assert [choice.id async for choice in stream] == EXPECTED
    await swarm.settled()
    await anyio.sleep(30)
    return stream.route


async def fetched(swarm: PaidWorld) -> int:
    """The donor computes the prompt, the taker takes it. returns: chunks that it took"""
    await ask(swarm, without=TAKER)
    return (await ask(swarm, without=DONOR)).hops[0].fetched // CHUNK_TOKENS


def store_of(swarm: PaidWorld, who: Identity) -> Store:
    return swarm.ledgers[who.peer_id].store


def gifts(store: Store, author: Identity) -> list[Open]:
    bodies = (entry.body for entry in store.of(author.public_key))
    return [body for body in bodies if isinstance(body, Open) and is_for_chunks(body)]


def story(store: Store, key: bytes, now: int) -> list[str]:
    found = [step for step in steps(store, key, now) if step.stored is not None and step.is_of_chunks]
    entries_ = [(step, step.stored.entry) for step in found if step.stored is not None]
    return [entry_sentence(entry.body, entry.author, key, of_chunks=step.is_of_chunks) for step, entry in entries_]


@pytest.mark.anyio
async def test_a_taker_whose_client_paid_nothing_owes_the_donor_a_favour() -> None:
    async with paid_world((1, "all"), (2, "all"), credit=0, shares_kv=True, position_s=0.0003) as swarm:
        chunks = await fetched(swarm)
        assert chunks > 5
        donor, taker = store_of(swarm, DONOR), store_of(swarm, TAKER)
        (terms,) = gifts(taker, TAKER)
        assert (terms.server, terms.price, terms.most_ticks) == (DONOR.public_key, 0, chunks)
        now = swarm.ledgers[DONOR.peer_id].now()
        for_it = donor.balances.favours.ticks(TAKER.public_key, DONOR.public_key, now)
        assert for_it == pytest.approx(chunks, rel=0.01), "half of what computing them would be: 32 positions each"
        assert donor.balances.account(DONOR.public_key).contributed == 0
        assert donor.balances.totals.minted == taker.balances.totals.minted == 0
        said = story(donor, DONOR.public_key, now)
        assert said == [f"This node settled what it gave, with proof of {chunks} chunks of a cached prefix "
                        f"({chunks * CHUNK_TOKENS} tokens)"]  # fmt: skip
        (took,) = story(taker, TAKER.public_key, now)
        assert took.endswith("and did not compute them, as a favour that it owes")


@pytest.mark.anyio
async def test_a_taker_that_is_paid_pays_the_donor_half_of_what_computing_costs() -> None:
    async with paid_world((1, "all"), (2, "all"), shares_kv=True, position_s=0.0003) as swarm:
        for who in (DONOR, TAKER):  # both know that the taker has credit from elsewhere
            balances = store_of(swarm, who).balances
            now = swarm.ledgers[who.peer_id].now()
            balances.mint(TAKER.public_key, CREDIT, bytes(32), now - 25 * 3600)
            list(balances.advance(TAKER.public_key, now))
        await ask(swarm, without=TAKER)
        donor = store_of(swarm, DONOR)
        earned = donor.balances.account(DONOR.public_key).contributed
        chunks = (await ask(swarm, without=DONOR)).hops[0].fetched // CHUNK_TOKENS
        (terms,) = gifts(store_of(swarm, TAKER), TAKER)
        assert (terms.price, terms.most_ticks) == (chunk_price(MANIFEST, Span(0, 8)), chunks)
        assert 2 * terms.price <= CHUNK_TOKENS * PRICE // 32, "never more than computing would have cost"
        gained = donor.balances.account(DONOR.public_key).contributed - earned
        assert gained == chunks * terms.price - -(-chunks * terms.price * BURN_PERCENT // 100)
        assert donor.balances.imbalance() == 0
        taker = store_of(swarm, TAKER).balances.account(TAKER.public_key)
        assert taker.contributed > chunks * terms.price, "it keeps a part of what its client paid for these positions"


@pytest.mark.anyio
async def test_what_lies_here_already_is_not_owed_again() -> None:
    async with paid_world((1, "all"), (2, "all"), credit=0, shares_kv=True, position_s=0.0003) as swarm:
        chunks = await fetched(swarm)
        again = await ask(swarm, without=DONOR)
        assert again.hops[0].fetched >= chunks * CHUNK_TOKENS > 0
        now = swarm.ledgers[DONOR.peer_id].now()
        owed = sum(terms.most_ticks for terms in gifts(store_of(swarm, TAKER), TAKER))
        assert chunks <= owed <= swarm.prefixes[2].counts.fetched, "each chunk is owed for once"
        balances = store_of(swarm, DONOR).balances
        assert balances.favours.ticks(TAKER.public_key, DONOR.public_key, now) == pytest.approx(owed, rel=0.01)


@pytest.mark.anyio
async def test_a_donor_whose_chunks_are_found_false_is_owed_nothing() -> None:
    async with paid_world((1, "all"), (2, "all"), credit=0, shares_kv=True, position_s=0.0003) as swarm:
        await ask(swarm, without=TAKER)
        prefixes = swarm.prefixes[2]
        prefixes.audit_share = 1.0
        prefixes.draw = lambda: (
            0.999
        )  # the last chunk, which comes first; one at the front may be computed before it comes
        (compute,) = {prefixes.coder_of(MODEL_ID)}
        assert compute is not None

        async def far(own: bytes, claimed: bytes, level: KvLevel) -> float:
            return 2.0

        compute.kv_distance = far  # type: ignore[method-assign]
        await ask(swarm, without=DONOR)
        assert prefixes.is_banned(DONOR.peer_id)
        assert gifts(store_of(swarm, TAKER), TAKER) == []


@dataclass
class Telephone:
    """`MemberCalls` of a taker. silent: who never answers"""

    silent: PeerId
    called: list[PeerId] = field(default_factory=list)
    answers: dict[str, CallHandler] = field(default_factory=dict)

    async def call(self, peer: PeerId, _method: str, _body: bytes, timeout_s: float = 5.0) -> bytes:
        self.called.append(peer)
        if peer == self.silent:
            await anyio.sleep(timeout_s)
            raise TimedOut("nothing came")
        return b""

    async def answer(self, method: str, handler: CallHandler) -> None:
        self.answers[method] = handler


def accounts_of(who: Identity, calls: Telephone, catch_up: CatchUp) -> PrefixAccounts:
    ledger = Ledger(Store(None), who, lambda: float(NOW), in_thread=False)
    some = cast("MemberCalls", calls)
    return PrefixAccounts(ledger, some, lambda _: MANIFEST, set(), catch_up, anyio.current_time)


async def nothing_to_catch_up(*_: object) -> list[Entry]:
    raise AssertionError("nobody is to be asked")


@pytest.mark.anyio
async def test_a_donor_that_does_not_answer_keeps_the_others_waiting_once() -> None:
    silent, other = DONOR.peer_id, Identity(bytes([7]) * 32).peer_id
    calls = Telephone(silent)
    books = accounts_of(TAKER, calls, nothing_to_catch_up)
    request = SessionOpen(
        SessionId("ab" * 14), MODEL_ID, "float32", Span(0, 8), 100, TAKER.peer_id, None, None, (), Sampling(), ()
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(books.run)
        for _ in range(100):
            books.took(silent, request, 3)
        books.took(other, request, 3)
        await anyio.sleep(60)
        assert calls.called == [silent] * TRIES + [other]
        await anyio.sleep(SILENT_S)
        books.took(silent, request, 3)
        await anyio.sleep(1)
        assert calls.called[-1] == silent, "it may have come back"
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_thanks_of_somebody_who_got_nothing_cost_no_search_for_his_entries() -> None:
    calls = Telephone(PeerId("nobody"))
    books = accounts_of(DONOR, calls, nothing_to_catch_up)
    await books.serve()
    words = PayWords(bytes(16), 3)
    body = chunk_thanks.terms(DONOR.public_key, b"s", words.root, 3, 0)
    far = entries.write(TAKER, 1000, bytes([1]) * 32, NOW, body)  # nobody knows what comes before
    said = chunk_thanks.thanks.encode(Thanks(entries.encode(far), 3, words.word(3)))
    with pytest.raises(Refused, match="0 that were given"):
        await calls.answers[chunk_thanks.METHOD](TAKER.peer_id, said)


@pytest.mark.anyio
async def test_a_donor_that_keeps_no_books_costs_the_taker_one_entry_and_no_session() -> None:
    async with paid_world((1, "all"), (2, "all"), credit=0, shares_kv=True, position_s=0.0003) as swarm:
        donor = swarm.network.living(DONOR.peer_id)
        assert donor is not None
        del donor._methods[chunk_thanks.METHOD]  # noqa: SLF001
        await fetched(swarm)
        assert len(gifts(store_of(swarm, TAKER), TAKER)) == 1
        assert all(ledger.failure is None for ledger in swarm.ledgers.values())


def test_thanks_for_what_was_not_given_are_refused() -> None:
    taker, me = person(1), person(2).public_key
    words = payword.PayWords(bytes(16), 8)
    terms = chunk_thanks.terms(me, b"s", words.root, 8, 0)
    entry = entries.write(taker, 0, entries.NO_HASH, 1, terms)
    given = GivenChunks()

    def said(ticks: int, word: bytes | None = None) -> Thanks:
        return Thanks(entries.encode(entry), ticks, words.word(ticks) if word is None else word)

    with pytest.raises(Refused, match="0 that were given"):
        given.settled(taker.peer_id, entry, said(1), me)
    for _ in range(5):
        given.gave(taker.peer_id)
    with pytest.raises(Refused, match="5 that were given"):
        given.settled(taker.peer_id, entry, said(6), me)
    with pytest.raises(Refused, match="word"):
        given.settled(taker.peer_id, entry, said(5, words.word(4)), me)
    with pytest.raises(Refused, match="no account"):
        given.settled(taker.peer_id, entry, said(5), taker.public_key)
    other = entries.write(taker, 0, entries.NO_HASH, 1, Open(me, b"s", words.root, 0, 32, 8, 60, 0))
    with pytest.raises(Refused, match="no account"):
        given.settled(taker.peer_id, other, said(5), me)
    given.settled(taker.peer_id, entry, said(5), me)
    with pytest.raises(Refused, match="0 that were given"):
        given.settled(taker.peer_id, entry, said(5), me)


def test_only_a_thousand_takers_are_counted() -> None:
    given = GivenChunks()
    for number in range(chunk_thanks.MOST_TAKERS + 5):
        given.gave(PeerId(str(number)))
    assert len(given._given) == chunk_thanks.MOST_TAKERS  # noqa: SLF001


def test_a_span_without_layers_keeps_nothing_and_costs_nothing() -> None:
    assert chunk_price(MANIFEST, Span(0, 1)) == chunk_price(MANIFEST, Span(7, 8)) == 0
    assert chunk_price(MANIFEST, Span(0, 8)) == tick_price(MANIFEST, Span(1, 7)) > 0
