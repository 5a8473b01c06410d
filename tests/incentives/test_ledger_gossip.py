"""The gossip's machine: what it says and asks, whom it believes nothing, what one peer can cost it, and forks."""

import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from incentives.chains import NOW_S, chain_of, continued
from swarm.people import person

from shoal.incentives import entry as entries
from shoal.incentives.bodies import ForkProof
from shoal.incentives.chain import Forked, forger, fork_proof
from shoal.incentives.entry import Entry
from shoal.incentives.gossip_events import (
    Adopted,
    Answered,
    Ask,
    Caught,
    Convict,
    Effect,
    Event,
    Forger,
    GossipOptions,
    Heard,
    Kept,
    Listed,
    Muted,
    Publish,
    Report,
    Ticked,
    Unanswered,
)
from shoal.incentives.gossip_messages import EntriesWanted, News, Page, ProofWanted, TipsWanted, news
from shoal.incentives.ledger_answers import LedgerAnswers
from shoal.incentives.ledger_gossip import LedgerGossip
from shoal.incentives.simulated_book import SimulatedBook
from shoal.incentives.simulated_gossip import GossipScenario, GossipSimulation
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.topic_envelope import open_sealed, seal

TOPIC = "ledger"
AUTHOR, OTHER = person(1), person(2)
PEERS = [person(number).peer_id for number in range(1, 9)]


def opened(origin: PeerId, data: bytes) -> bytes:
    return open_sealed(TOPIC, origin, data)[1]


def sealed(sender: Identity, several: Sequence[Entry]) -> Heard:
    body = news.encode(News(tuple(entries.encode(entry) for entry in several)))
    return Heard(sender.peer_id, seal(sender, TOPIC, body))


class Listener:
    """A peer with its book; time stands still unless told."""

    def __init__(self, me: Identity | None = None, options: GossipOptions | None = None) -> None:
        self.me = me or person(8)
        self.now = float(NOW_S)
        self.book = SimulatedBook()
        self.gossip = LedgerGossip(self.me.peer_id, self.book, opened, options, random.Random(1))
        self.answers = LedgerAnswers(self.book, self.gossip.convicted)
        self.gossip.handle(Listed(PEERS), self.now)

    def __call__(self, event: Event) -> list[Effect]:
        return list(self.gossip.handle(event, self.now))

    def after(self, seconds: float) -> list[Effect]:
        """Everything that the clock sets off meanwhile."""
        effects: list[Effect] = []
        until = self.now + seconds
        while self.now < until:
            self.now += self.gossip.options.beat_s
            effects += self.gossip.handle(Ticked(), self.now)
        return effects


def facts(effects: Sequence[Effect], kind: type) -> list[object]:
    return [effect.fact for effect in effects if isinstance(effect, Report) and isinstance(effect.fact, kind)]


def asks(effects: Sequence[Effect], kind: type = EntriesWanted) -> list[Ask]:
    return [effect for effect in effects if isinstance(effect, Ask) and isinstance(effect.question, kind)]


def published(effects: Sequence[Effect]) -> list[Entry]:
    bodies = [news.decode(effect.body) for effect in effects if isinstance(effect, Publish)]
    return [entries.decode(data) for body in bodies for data in body.entries]


def test_what_a_peer_writes_is_heard_and_kept_by_another() -> None:
    writer, reader, chain = Listener(AUTHOR), Listener(), chain_of(AUTHOR, 3)
    writer.book.receive_all(chain, NOW_S)
    writer(Kept(chain))
    assert published(writer.after(1.0)) == chain
    assert facts(reader(sealed(AUTHOR, chain)), Adopted) == [Adopted(chain)]
    assert reader(sealed(AUTHOR, chain)) == []
    assert reader.book.of(AUTHOR.public_key) == chain


def test_a_gap_is_filled_by_asking_who_told_and_page_by_page() -> None:
    reader, holder, chain = Listener(), Listener(person(3)), chain_of(AUTHOR, 700)
    holder.book.receive_all(chain, NOW_S)
    effects = reader(sealed(person(3), chain[-1:]))
    pages = 0
    while questions := asks(effects):
        (ask,) = questions
        assert ask.peer == person(3).peer_id
        answer = holder.answers.page(reader.me.peer_id, ask.question, reader.now)  # type: ignore[arg-type]
        effects = reader(Answered(ask.peer, ask.question, answer))
        pages += 1
    assert pages == 3
    assert reader.book.of(AUTHOR.public_key) == chain
    assert not reader.gossip.is_catching_up


def test_who_does_not_answer_is_left_and_another_who_told_is_asked() -> None:
    reader, chain = Listener(), chain_of(AUTHOR, 5)
    (first,) = asks(reader(sealed(person(3), chain[-1:])))
    assert asks(reader(sealed(person(4), chain[-1:]))) == []
    (second,) = asks(reader(Unanswered(first.peer, first.question)))
    assert (first.peer, second.peer) == (person(3).peer_id, person(4).peer_id)
    page = Page(5, tuple(entries.encode(entry) for entry in chain))
    reader(Answered(second.peer, second.question, page))
    assert reader.book.of(AUTHOR.public_key) == chain


def test_two_branches_shown_to_two_peers_meet_at_a_third() -> None:
    reader, past = Listener(), chain_of(AUTHOR, 2)
    one, other = continued(AUTHOR, past, 1, 10), continued(AUTHOR, past, 1, 20)
    reader(sealed(person(3), one))
    (fact,) = facts(reader(sealed(person(4), other)), Forger)
    assert isinstance(fact, Forger)
    assert fact.author == AUTHOR.public_key
    assert fact.first_hand
    assert forger(fact.proof) == AUTHOR.public_key
    assert facts(reader(sealed(person(5), other)), Forger) == []


@pytest.mark.parametrize("longer", [1, 4])
def test_a_fork_before_a_gap_is_found_by_the_entry_that_both_hold(longer: int) -> None:
    reader, holder, past = Listener(), Listener(person(3)), chain_of(AUTHOR, 2)
    one, other = continued(AUTHOR, past, 3, 10), continued(AUTHOR, past, 3 + longer, 20)
    reader(sealed(person(4), one))
    holder.book.receive_all(other, NOW_S)
    (ask,) = asks(reader(sealed(person(3), other[-1:])))
    answer = holder.answers.page(reader.me.peer_id, ask.question, reader.now)  # type: ignore[arg-type]
    assert facts(reader(Answered(ask.peer, ask.question, answer)), Forger)


def test_who_is_shown_a_fork_first_hand_tells_at_once_and_whoever_hears_of_it_is_silent() -> None:
    server, others = Listener(person(3)), [Listener(person(number)) for number in (4, 5, 6)]
    past = chain_of(AUTHOR, 1)
    one, other = continued(AUTHOR, past, 1, 10), continued(AUTHOR, past, 1, 20)
    server.book.receive_all(one, NOW_S)
    (verdict,) = server.book.receive_all(other[-1:], NOW_S)
    assert isinstance(verdict, Forked)
    server(Caught(verdict.proof))
    (told,) = [effect for effect in server.after(0.5) if isinstance(effect, Convict)]
    proof_entry = server.book.write(server.me, told.proof, NOW_S)
    server(Kept([proof_entry]))
    assert published(server.after(0.5)) == [proof_entry]
    for listener in others:
        assert facts(listener(sealed(server.me, [proof_entry])), Forger)
        assert AUTHOR.public_key in listener.gossip.convicted
        assert not [effect for effect in listener.after(20) if isinstance(effect, Convict)]


def test_of_many_who_find_a_fork_at_once_each_would_tell_within_its_time() -> None:
    waits = []
    for number in range(40):
        reader = Listener()
        reader.gossip._random = random.Random(number)  # noqa: SLF001
        past = chain_of(AUTHOR, 1)
        for sender, first in ((person(3), 10), (person(4), 20)):
            reader(sealed(sender, continued(AUTHOR, past, 1, first)))
        began = reader.now
        while not any(isinstance(effect, Convict) for effect in reader.after(0.5)):
            assert reader.now - began < 10
        waits.append(reader.now - began)
    assert max(waits) <= GossipOptions().tell_s + 1
    assert sorted(waits)[len(waits) // 2] > GossipOptions().tell_s / 2  # few are quick: the others will have heard


def test_an_entry_of_another_is_published_only_when_its_author_does_not() -> None:
    chain = chain_of(AUTHOR, 1)
    for author_speaks in (True, False):
        server = Listener(person(3))
        server.book.receive_all(chain, NOW_S)
        server(Kept(chain))
        if author_speaks:
            server(sealed(AUTHOR, chain))
        assert published(server.after(5)) == ([] if author_speaks else chain)


def test_nothing_more_of_a_forger_is_taken_or_asked_for() -> None:
    reader, past = Listener(), chain_of(AUTHOR, 1)
    proof = fork_proof(continued(AUTHOR, past, 1, 10)[-1], continued(AUTHOR, past, 1, 20)[-1])
    reader(sealed(OTHER, [entries.write(OTHER, 0, entries.NO_HASH, NOW_S, proof)]))
    assert AUTHOR.public_key in reader.gossip.convicted
    assert asks(reader(sealed(person(3), chain_of(AUTHOR, 9)[-1:]))) == []


def test_a_proof_that_proves_nothing_costs_nobody_its_standing() -> None:
    reader = Listener()
    chain = chain_of(AUTHOR, 2)
    unsigned = entries.Entry(AUTHOR.public_key, 1, chain[0].prev, NOW_S, chain[0].body, bytes(64))
    liar, prev = person(3), entries.NO_HASH
    worthless = (
        fork_proof(chain[0], chain[1]),
        fork_proof(chain[1], chain[1]),
        fork_proof(chain[1], unsigned),
        ForkProof(bytes(32), 0, entries.branch_of(chain[0]), entries.branch_of(chain[1])),
    )
    for seq, proof in enumerate(worthless):
        writing = entries.write(liar, seq, prev, NOW_S, proof)
        prev = entries.hash_of(writing)
        reader.gossip.handle(sealed(liar, [writing]), reader.now)
    assert reader.gossip.counts["worthless proofs"] == len(worthless)
    assert reader.gossip.convicted == {}


# What one peer can cost


def test_who_publishes_without_end_is_heard_a_bounded_number_of_times() -> None:
    reader, chain = Listener(), chain_of(AUTHOR, 1)
    message = sealed(person(3), chain)
    for _ in range(100_000):
        reader.gossip.handle(message, reader.now)
    assert reader.gossip.counts["heard"] - reader.gossip.counts["dropped"] <= reader.gossip.options.messages.burst
    assert facts(reader(sealed(OTHER, chain_of(OTHER, 1))), Adopted), "others are heard all the same"


def test_a_flood_of_opens_costs_little_time_and_room() -> None:
    """10^5 messages within ten seconds, real signatures; what is dropped is not even decoded."""
    reader = Listener()
    flooder = person(3)
    flood = [sealed(flooder, [entry]) for entry in chain_of(flooder, 300)]
    began = time.process_time()
    for number in range(100_000):
        reader.now += 1e-4
        reader.gossip.handle(flood[number % len(flood)], reader.now)
    spent_s = time.process_time() - began
    allowance = reader.gossip.options.messages
    assert reader.book.chain(flooder.public_key).length <= allowance.burst + 10 * allowance.per_s + 1
    assert spent_s < 10, "less than the time that the flood takes"


def test_keys_made_by_the_thousand_are_worth_one_quota() -> None:
    reader = Listener()
    for number in range(100, 400):
        stranger = person(number)
        reader(sealed(stranger, chain_of(stranger, 1)))
    assert len(reader.book.chains) <= reader.gossip.options.strangers.burst
    assert facts(reader(sealed(OTHER, chain_of(OTHER, 1))), Adopted)


def test_invented_gaps_lead_to_one_question_at_a_time_and_end() -> None:
    reader, liar = Listener(), person(3)
    asked = 0
    effects: list[Effect] = []
    for number in range(100, 180):
        effects += reader(sealed(liar, chain_of(person(number), 2)[-1:]))
    while questions := asks(effects):
        assert len(questions) == 1
        asked += 1
        effects = reader(Answered(liar.peer_id, questions[0].question, Page(9, ())))
        effects += reader.after(0.5)
    assert asked <= reader.gossip.options.messages.burst + 1
    assert not reader.gossip.is_catching_up or asked >= reader.gossip.options.pages.burst


def test_what_no_honest_peer_publishes_mutes_it() -> None:
    reader, liar = Listener(), person(3)
    good = chain_of(AUTHOR, 1)[0]
    unsigned = entries.Entry(good.author, good.seq, good.prev, good.time, good.body, bytes(64))
    muted: list[object] = []
    for _ in range(3):
        muted += facts(reader(sealed(liar, [unsigned])), Muted)
    assert [fact.peer for fact in muted] == [liar.peer_id]  # type: ignore[attr-defined]
    assert reader(sealed(liar, [good])) == []
    reader.now += reader.gossip.options.mute_s + 1
    assert facts(reader(sealed(liar, [good])), Adopted)


def test_entries_that_were_not_asked_for_are_not_taken() -> None:
    reader, chain = Listener(), chain_of(AUTHOR, 3)
    (ask,) = asks(reader(sealed(person(3), chain[-1:])))
    foreign = tuple(entries.encode(entry) for entry in chain_of(OTHER, 3))
    reader(Answered(ask.peer, ask.question, Page(3, foreign)))
    assert reader.book.chains == {}
    assert not reader.gossip.is_catching_up


@settings(max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_taken_or_dropped_without_a_crash(data: bytes, signed: bool) -> None:
    reader = Listener()
    reader(Heard(OTHER.peer_id, seal(OTHER, TOPIC, data) if signed else data))
    assert reader.gossip.counts["faults"] == 1


# Comparing now and then


def compare(asking: Listener, asked: Listener) -> None:
    """As in a swarm of two: all questions are answered."""
    asking.gossip.handle(Listed([asked.me.peer_id]), asking.now)
    effects = asking.after(2 * asking.gossip.options.sync_s)
    while questions := [effect for effect in effects if isinstance(effect, Ask)]:
        effects = []
        for ask in questions:
            match ask.question:
                case EntriesWanted() as question:
                    effects += asking(
                        Answered(ask.peer, question, asked.answers.page(asking.me.peer_id, question, asking.now))
                    )
                case TipsWanted() as tips:
                    effects += asking(Answered(ask.peer, tips, asked.answers.tips(asking.me.peer_id, tips, asking.now)))
                case ProofWanted() as proof:
                    effects += asking(
                        Answered(ask.peer, proof, asked.answers.proof(asking.me.peer_id, proof, asking.now))
                    )


def test_a_peer_that_was_away_hears_all_that_it_missed() -> None:
    here, away = Listener(person(7)), Listener()
    for number in range(1, 7):
        here.book.receive_all(chain_of(person(number), 2 * number), NOW_S)
    past = chain_of(person(20), 2)
    here.book.receive_all(continued(person(20), past, 1, 10), NOW_S)
    here(sealed(OTHER, continued(person(20), past, 1, 20)))
    assert person(20).public_key in here.gossip.convicted
    compare(away, here)
    for number in range(1, 7):
        assert away.book.chain(person(number).public_key).length == 2 * number
    assert person(20).public_key in away.gossip.convicted


@pytest.mark.parametrize("shorter", [0, 1, 2])
def test_a_fork_that_two_peers_hold_apart_is_found_when_they_compare(shorter: int) -> None:
    one, other = Listener(person(6)), Listener(person(7))
    past = chain_of(AUTHOR, 2)
    one.book.receive_all(continued(AUTHOR, past, 3, 10), NOW_S)
    other.book.receive_all(continued(AUTHOR, past, 3 - shorter, 20), NOW_S)
    compare(one, other)
    assert AUTHOR.public_key in one.gossip.convicted


# At scale


def test_a_fork_shown_to_two_victims_is_known_to_all_within_seconds() -> None:
    figures = GossipSimulation(GossipScenario(peers=120, forgers=8, duration_s=20.0, after_s=20.0)).run().figures()
    assert figures["never learnt"] == 0
    assert figures["known_p99_s"] <= 10
    assert figures["honest sessions"] > 0
    assert figures["of these refused or lost"] == 0
    assert figures["proofs told for a fork"] < 10


@pytest.mark.parametrize(("colluding", "blind"), [(0, 0.0), (0, 0.02), (1, 0.02), (2, 0.0)])
def test_no_fork_is_honoured_twice_where_a_witnessed_head_is_wanted_and_two_witnesses_lie(
    colluding: int, blind: float
) -> None:
    scenario = GossipScenario(
        peers=120,
        forgers=12,
        duration_s=20.0,
        after_s=20.0,
        witnessed=True,
        call_loss=0.0,
        colluding=colluding,
        blind=blind,
    )
    figures = GossipSimulation(scenario).run().figures()
    assert figures["both branches honoured"] == 0
    assert figures["one branch honoured"] > 0
    assert figures["never learnt"] == 0
    assert figures["of these refused or lost"] == 0


def test_a_simulation_is_a_function_of_its_seed() -> None:
    scenario = GossipScenario(peers=40, forgers=2, duration_s=10.0, after_s=10.0, seed=5)
    assert GossipSimulation(scenario).run().figures() == GossipSimulation(scenario).run().figures()
