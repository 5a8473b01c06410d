"""A witness signs one head for one place, also after kill -9; five of seven let a server know that it saw no fork."""

from pathlib import Path

import pytest
from incentives.chains import NOW_S, chain_of, continued
from swarm.people import person

from shoal.incentives import entry as entries
from shoal.incentives.bodies import Checkpoint, ForkProof, Witness
from shoal.incentives.chain import forger
from shoal.incentives.entry import Entry
from shoal.incentives.entry_tree import root_of
from shoal.incentives.gossip_messages import Cosigned, CosignWanted
from shoal.incentives.rendezvous import LIARS, quorum, witnesses
from shoal.incentives.simulated_book import SimulatedBook
from shoal.incentives.witness_duty import COSIGNATURES, SignedHeads, WitnessDuty
from shoal.incentives.witness_quest import WitnessQuest
from shoal.incentives.witnessed import (
    Head,
    WitnessedHead,
    checkpoint_problem,
    cosign,
    head_problem,
    is_cosigned,
    is_double_dealing,
    witnessed_codec,
)
from shoal.swarm.errors import MalformedMessage, Refused, Unavailable
from shoal.swarm.identifiers import PeerId

AUTHOR = person(1)
PEOPLE = {person(number).peer_id: person(number) for number in range(1, 12)}
APPOINTED = witnesses(AUTHOR.public_key, PEOPLE)


class Watcher:
    """A witness with its book, and what it caught."""

    def __init__(self, peer: PeerId, signed: SignedHeads | None = None, book: SimulatedBook | None = None) -> None:
        self.caught: list[ForkProof] = []
        self.ready = True
        self.book = book or SimulatedBook()
        self.duty = WitnessDuty(
            PEOPLE[peer],
            self.book,
            signed or SignedHeads(None),
            lambda: PEOPLE,
            lambda author: any(forger(proof) == author for proof in self.caught),
            self.caught.append,
            lambda: self.ready,
        )

    def sign(self, chain: list[Entry], shown: int | None = None, caller: PeerId = AUTHOR.peer_id) -> Cosigned:
        """shown: the last so many entries; all of them"""
        some = chain if shown is None else chain[len(chain) - shown :]
        wanted = CosignWanted(AUTHOR.public_key, len(chain), tuple(entries.encode(entry) for entry in some))
        return self.duty.answer(caller, wanted, NOW_S)


def head_of(chain: list[Entry]) -> Head:
    hashes = [entries.hash_of(entry) for entry in chain]
    return Head(AUTHOR.public_key, len(chain), hashes[-1], root_of(hashes))


def test_a_witness_signs_the_head_of_a_chain_and_says_what_it_lacks() -> None:
    watcher, chain = Watcher(APPOINTED[0]), chain_of(AUTHOR, 5)
    assert watcher.sign(chain, shown=1) == Cosigned(0, None)
    answer = watcher.sign(chain)
    assert answer.witness is not None
    assert is_cosigned(head_of(chain), answer.witness)
    longer = continued(AUTHOR, chain, 2, first_number=50)
    answer = watcher.sign(longer, shown=2)
    assert answer.witness is not None
    assert is_cosigned(head_of(longer), answer.witness)
    again = watcher.sign(chain, shown=0)  # part of what it signed
    assert again.witness is not None
    assert is_cosigned(head_of(chain), again.witness)


def test_a_witness_signs_nothing_of_a_second_branch() -> None:
    watcher, chain = Watcher(APPOINTED[0]), chain_of(AUTHOR, 3)
    one, other = continued(AUTHOR, chain, 1, 10), continued(AUTHOR, chain, 2, 20)
    assert watcher.sign(one).witness is not None
    with pytest.raises(Refused, match="forked"):
        watcher.sign(other)
    assert [forger(proof) for proof in watcher.caught] == [AUTHOR.public_key]


def test_a_witness_that_lost_its_entries_still_signs_nothing_of_a_second_branch(tmp_path: Path) -> None:
    chain = chain_of(AUTHOR, 3)
    one, other = continued(AUTHOR, chain, 1, 10), continued(AUTHOR, chain, 2, 20)
    signed = SignedHeads(tmp_path / "witness.sqlite")
    assert Watcher(APPOINTED[0], signed).sign(one).witness is not None
    signed.close()
    back = Watcher(APPOINTED[0], SignedHeads(tmp_path / "witness.sqlite"))
    with pytest.raises(Refused, match="another branch"):
        back.sign(other)
    with pytest.raises(Refused, match="show these first"):
        Watcher(APPOINTED[0], SignedHeads(tmp_path / "witness.sqlite")).sign(other[:3])


def test_a_witness_serves_the_author_alone_and_only_when_it_was_appointed_and_has_caught_up() -> None:
    chain = chain_of(AUTHOR, 2)
    with pytest.raises(Refused, match="author itself"):
        Watcher(APPOINTED[0]).sign(chain, caller=person(2).peer_id)
    other = next(peer for peer in PEOPLE if peer not in APPOINTED and peer != AUTHOR.peer_id)
    with pytest.raises(Refused, match="no witness"):
        Watcher(other).sign(chain)
    fresh = Watcher(APPOINTED[0])
    fresh.ready = False
    with pytest.raises(Unavailable):
        fresh.sign(chain)


def test_an_author_that_asks_without_end_is_refused_after_a_while() -> None:
    watcher, chain = Watcher(APPOINTED[0]), chain_of(AUTHOR, 1)
    for _ in range(int(COSIGNATURES.burst)):
        watcher.sign(chain)
    with pytest.raises(Refused, match="too many"):
        watcher.sign(chain)


def quest(chain: list[Entry], watchers: dict[PeerId, Watcher]) -> WitnessQuest:
    """Carried out to its end; witnesses that are missing do not answer."""
    book = SimulatedBook()
    book.receive_all(chain, NOW_S)
    found = WitnessQuest(AUTHOR.public_key, len(chain), book, APPOINTED)
    asks = list(found.begin())
    while asks:
        ask = asks.pop(0)
        if ask.peer not in watchers:
            found.unanswered(ask.peer, "no answer")
            continue
        try:
            asks += found.answered(ask.peer, watchers[ask.peer].duty.answer(AUTHOR.peer_id, ask.question, NOW_S))
        except Refused as error:
            found.unanswered(ask.peer, str(error))
    return found


def test_an_author_gets_its_head_witnessed_by_those_of_the_seven_that_live() -> None:
    chain = chain_of(AUTHOR, 600)  # more than a page
    found = quest(chain, {peer: Watcher(peer) for peer in APPOINTED[:5]})
    assert found.result is not None
    assert not found.failed
    assert witnessed_codec.decode(witnessed_codec.encode(found.result)) == found.result
    assert head_problem(found.result, chain[-1], APPOINTED) == ""
    assert quest(chain, {peer: Watcher(peer) for peer in APPOINTED[:4]}).failed


@pytest.mark.parametrize(("liars", "most"), [(0, 1), (1, 1), (2, 1), (3, 2)])
def test_of_two_branches_at_most_one_finds_five_witnesses_while_two_lie(liars: int, most: int) -> None:
    past = chain_of(AUTHOR, 3)
    branches = [continued(AUTHOR, past, 1, 10), continued(AUTHOR, past, 1, 20)]
    heads = [head_of(branch) for branch in branches]
    found = 0
    for division in range(2 ** (len(APPOINTED) - liars)):
        signatures = [[cosign(PEOPLE[liar], head) for liar in APPOINTED[:liars]] for head in heads]
        for number, peer in enumerate(APPOINTED[liars:]):
            watcher, shown = Watcher(peer), division >> number & 1
            first = watcher.sign(branches[shown]).witness
            assert first is not None
            signatures[shown].append(first)
            with pytest.raises(Refused):
                watcher.sign(branches[1 - shown])
        both = [WitnessedHead(head, tuple(signed)) for head, signed in zip(heads, signatures, strict=True)]
        honoured = [head_problem(one, branch[-1], APPOINTED) == "" for one, branch in zip(both, branches, strict=True)]
        found = max(found, sum(honoured))
    assert found == most


def test_a_head_carries_the_signatures_of_all_that_answered() -> None:
    """A server that does not know some of the members counts fewer of them."""
    chain = chain_of(AUTHOR, 2)
    found = quest(chain, {peer: Watcher(peer) for peer in APPOINTED}).result
    assert found is not None
    assert len(found.witnesses) == len(APPOINTED)
    for unknown in APPOINTED[:2], APPOINTED[5:]:
        known = witnesses(AUTHOR.public_key, [peer for peer in PEOPLE if peer not in unknown])
        assert head_problem(found, chain[-1], known) == ""


@pytest.mark.parametrize(("appointed", "wanted"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 5), (7, 5)])
def test_any_two_quorums_share_more_than_the_liars_or_are_everybody(appointed: int, wanted: int) -> None:
    assert quorum(appointed) == wanted
    assert 2 * wanted - appointed > LIARS or wanted == appointed


def test_a_server_honours_a_head_by_the_authors_own_witnesses_and_no_other() -> None:
    chain = chain_of(AUTHOR, 2)
    head = head_of(chain)
    signatures = tuple(cosign(PEOPLE[peer], head) for peer in APPOINTED[:5])
    strangers = [peer for peer in PEOPLE if peer not in APPOINTED]
    assert head_problem(WitnessedHead(head, signatures), chain[-1], APPOINTED) == ""
    assert head_problem(WitnessedHead(head, signatures), chain[0], APPOINTED)
    for worthless in (
        signatures[:4],
        (*signatures[:4], signatures[0]),
        (*signatures[:4], cosign(PEOPLE[strangers[0]], head)),
        (*signatures[:4], Witness(signatures[4].key, bytes(64))),
        (*signatures[:4], Witness(bytes(32), signatures[4].signature)),
        (*signatures[:4], cosign(PEOPLE[APPOINTED[4]], head_of(chain_of(AUTHOR, 2, 70)))),
    ):
        assert head_problem(WitnessedHead(head, worthless), chain[-1], APPOINTED)
    assert head_problem(WitnessedHead(head, signatures), chain[-1], APPOINTED, needed=6)


def test_a_checkpoint_proves_what_stands_before_it() -> None:
    chain = chain_of(AUTHOR, 4)
    head = head_of(chain)
    signatures = tuple(cosign(PEOPLE[peer], head) for peer in APPOINTED[:5])
    body = Checkpoint(head.root, 4, bytes(32), signatures)
    entry = entries.write(AUTHOR, 4, head.last, NOW_S, body)
    assert checkpoint_problem(entry, APPOINTED) == ""
    later = entries.write(AUTHOR, 5, entries.hash_of(entry), NOW_S, body)
    assert checkpoint_problem(later, APPOINTED)
    assert checkpoint_problem(entries.write(AUTHOR, 4, bytes(32), NOW_S, body), APPOINTED)
    assert checkpoint_problem(chain[0], APPOINTED)


def test_a_witness_that_signed_two_heads_is_convicted_by_its_signatures() -> None:
    one, other = head_of(chain_of(AUTHOR, 2)), head_of(chain_of(AUTHOR, 2, 40))
    liar = PEOPLE[APPOINTED[0]]
    signatures = (cosign(liar, one).signature, cosign(liar, other).signature)
    assert is_double_dealing(one, other, liar.public_key, signatures)
    assert not is_double_dealing(one, one, liar.public_key, (signatures[0], signatures[0]))
    assert not is_double_dealing(one, other, liar.public_key, (signatures[0], signatures[0]))
    assert not is_double_dealing(one, other, person(2).public_key, signatures)


def test_entries_of_another_chain_are_refused() -> None:
    wanted = CosignWanted(AUTHOR.public_key, 1, (entries.encode(chain_of(person(2), 1)[0]),))
    with pytest.raises(MalformedMessage):
        Watcher(APPOINTED[0]).duty.answer(AUTHOR.peer_id, wanted, NOW_S)
