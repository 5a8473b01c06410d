"""The parts of a round by themselves: hash trees, commitments, owners, ballots, decisions."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swarm.rounds.round_peers import run_spec

from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds import hash_tree, messages
from shoal.swarm.rounds.ballots import Acceptor, Ballot, bound_to
from shoal.swarm.rounds.commitments import Commitment, is_committed
from shoal.swarm.rounds.decisions import (
    Decision,
    Done,
    Member,
    Roster,
    ShardResult,
    Skip,
    bits,
    digest,
    indices,
    problem,
)
from shoal.swarm.rounds.events import Received, RoundOptions, Send
from shoal.swarm.rounds.gathering import gathered
from shoal.swarm.rounds.machine import RoundMachine
from shoal.swarm.rounds.ownership import leaders, owners
from shoal.swarm.rounds.run_identity import differences, run_id, run_key

RUN = run_id(run_spec())
ALICE, BOB, CAROL = (PeerId(name) for name in ("alice", "bob", "carol"))


@given(st.integers(1, 40), st.data())
def test_a_path_shows_its_leaf_and_no_other(count: int, data: st.DataObject) -> None:
    leaves = [hash_tree.leaf_hash(bytes([i])) for i in range(count)]
    top = hash_tree.root(leaves)
    index, other = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count - 1))
    path = hash_tree.path(leaves, index)
    assert hash_tree.shows(top, count, index, leaves[index], path)
    assert hash_tree.shows(top, count, other, leaves[index], path) == (index == other)
    assert not hash_tree.shows(top, count, index, hash_tree.leaf_hash(b"else"), path)
    assert not hash_tree.shows(top, count, index, leaves[index], (*path, leaves[0]))
    assert not hash_tree.shows(top, count, count, leaves[index], path)


def test_a_payload_of_another_round_peer_or_shard_fits_no_commitment() -> None:
    payloads = [b"one", b"two", b"three"]
    commitment = Commitment(RUN, 7, 0, ALICE, payloads)

    def fits(round_: int = 7, fragment: int = 0, peer: PeerId = ALICE, shard: int = 1, payload: bytes = b"two") -> bool:
        path = commitment.path(1)
        return is_committed(RUN, round_, fragment, peer, commitment.root, 3, shard, payload, path)

    assert fits()
    assert not fits(round_=8)
    assert not fits(fragment=1)
    assert not fits(peer=BOB)
    assert not fits(shard=0)
    assert not fits(payload=b"tw0")


def test_shards_stay_with_their_owners_and_nobody_owns_more_than_a_fair_share() -> None:
    peers = tuple(PeerId(f"peer{i}") for i in range(5))
    before = owners(RUN, 16, peers)
    assert max(before.count(peer) for peer in peers) == 4
    again = owners(RUN, 16, peers, before)
    assert again == before
    without = owners(RUN, 16, peers[1:], before)
    moved = [shard for shard in range(16) if without[shard] != before[shard]]
    assert moved == [shard for shard in range(16) if before[shard] == peers[0]]
    joined = owners(RUN, 16, (*peers, PeerId("new")), before)
    assert sum(one != other for one, other in zip(joined, before, strict=True)) <= 3
    assert max(joined.count(peer) for peer in (*peers, "new")) <= 3 + 1


def test_everybody_leads_now_and_then() -> None:
    peers = tuple(PeerId(f"peer{i}") for i in range(6))
    first = [leaders(RUN, round_, peers)[0] for round_ in range(60)]
    assert set(first) == set(peers)
    assert sorted(leaders(RUN, 3, peers)) == list(peers)


def test_an_acceptor_keeps_its_promises() -> None:
    acceptor, value = Acceptor(), Decision(Skip(1, b""), None)
    assert acceptor.promise(Ballot(2, BOB))
    assert not acceptor.accept(Ballot(1, CAROL), value)
    assert not acceptor.accept(Ballot(2, ALICE), value)
    assert acceptor.accepted is None
    assert acceptor.accept(Ballot(2, BOB), value)
    assert not acceptor.promise(Ballot(1, BOB))
    assert acceptor.promise(Ballot(3, ALICE))
    assert acceptor.accepted is value


def test_a_proposer_is_bound_to_the_highest_ballot_that_anybody_accepted() -> None:
    one, other = Decision(Skip(1, b"one"), None), Decision(Skip(1, b"other"), None)
    assert bound_to([None, None]) is None
    assert bound_to([None, (Ballot(1, BOB), one), (Ballot(4, ALICE), other), (Ballot(1, CAROL), one)]) is other


def founded(me: PeerId = BOB) -> RoundMachine:
    """A machine that has learnt of a round in which alice, bob and carol took part."""
    machine = RoundMachine(me, run_spec(shards=1, count=100), options=RoundOptions(), generator=random.Random(1))
    nonce = machine.state.nonce
    roster = Roster(0, 0, b"s" * 32, tuple(Member(p, nonce, 1, b"r" * 32) for p in (ALICE, BOB, CAROL)))
    result = ShardResult(0, b"a" * 32, b"b" * 32, bits([0, 1, 2], 3), bits([], 3))
    value = Done(0, b"", roster.name, (result,), (), ())
    machine.handle(Received(ALICE, messages.Settled(value, roster)), 1.0)
    assert machine.state.history.settled == 0
    return machine


def said(machine: RoundMachine, sender: PeerId, message: messages.AnyMessage) -> list[messages.AnyMessage]:
    return [e.message for e in machine.handle(Received(sender, message), 2.0) if isinstance(e, Send) and e.to == sender]


def test_a_voter_that_promised_refuses_the_leader_before() -> None:
    machine = founded()
    order = [machine.state.leader_at(attempt) for attempt in range(3)]
    basis = machine.state.history.basis
    prepare = messages.Prepare(1, Ballot(1, order[1]), basis)
    if order[1] != BOB:
        (promise,) = said(machine, order[1], prepare)
        assert isinstance(promise, messages.Promise)
        assert promise.accepted is None
    else:
        (promise,) = said(machine, order[2], messages.Prepare(1, Ballot(2, order[2]), basis))
    late = messages.Propose(1, Ballot(0, order[0]), Skip(1, basis), None)
    if order[0] != BOB:
        (nack,) = said(machine, order[0], late)
        assert isinstance(nack, messages.Nack)
    assert machine.state.slot.acceptor.accepted is None


def test_a_ballot_out_of_turn_or_of_another_past_moves_nobody() -> None:
    machine = founded()
    order, basis = machine.state.leader_order(), machine.state.history.basis
    stranger = PeerId("mallory")
    assert said(machine, stranger, messages.Prepare(1, Ballot(1, stranger), basis)) == []
    turn = next(attempt for attempt in (1, 2) if order[attempt] != BOB)
    wrong = next(peer for peer in order if peer not in (order[turn], BOB))
    assert said(machine, wrong, messages.Prepare(1, Ballot(turn, wrong), basis)) == []
    answers = said(machine, order[turn], messages.Prepare(1, Ballot(turn, order[turn]), b"x" * 32))
    assert not any(isinstance(answer, messages.Promise) for answer in answers)
    assert any(isinstance(answer, messages.Latest) for answer in answers)
    assert machine.state.slot.acceptor.promised is None


def test_a_peer_that_was_restarted_has_no_vote_until_it_took_part_again() -> None:
    machine = founded()
    assert machine.state.votes
    machine.state.draw_nonce()
    assert not machine.state.votes
    leader = machine.state.leader_at(1)
    assert said(machine, leader, messages.Prepare(1, Ballot(1, leader), machine.state.history.basis)) == []


@given(st.sets(st.integers(0, 30)), st.integers(31, 40))
def test_masks_hold_their_members(members: set[int], count: int) -> None:
    assert indices(bits(members, count), count) == sorted(members)


def test_a_decision_that_does_not_fit_its_roster_is_no_decision() -> None:
    roster = Roster(3, 0, b"s" * 32, tuple(Member(p, 1, 1, b"r" * 32) for p in (ALICE, BOB)))
    result = ShardResult(1, b"a" * 32, b"b" * 32, b"\3", b"\0")
    good = Done(3, b"", roster.name, (result,), (), ())
    replace = msgspec.structs.replace
    assert problem(good, roster, 1) == ""
    assert problem(good, roster, 2)
    assert problem(replace(good, round=4), roster, 1)
    assert problem(replace(good, roster=b"x" * 32), roster, 1)
    assert problem(replace(good, shards=(replace(result, owner=2),)), roster, 1)
    assert problem(replace(good, shards=(replace(result, arrived=b""),)), roster, 1)
    twice = replace(roster, members=(roster.members[0],) * 2)
    assert problem(replace(good, roster=twice.name), twice, 1)
    assert digest(good) != digest(replace(good, basis=b"x"))


def test_those_at_another_state_are_told_apart_and_voters_weigh_first() -> None:
    def ready(state: bytes) -> messages.Ready:
        return messages.Ready(1, 0, state * 32, b"", 0, 5, 10, b"r" * 32)

    readies = {ALICE: ready(b"a"), BOB: ready(b"b"), CAROL: ready(b"b")}
    found = gathered(readies, None)
    assert found is not None
    assert found.roster(1).peers == (BOB, CAROL)
    assert found.astray == (ALICE,)
    voted = gathered(readies, {(ALICE, 5)})
    assert voted is not None
    assert voted.roster(1).peers == (ALICE,)
    assert gathered({}, None) is None


def test_what_differs_between_two_runs_is_named() -> None:
    ours, theirs = run_spec(), run_spec(preset="fp4", model="n" * 64)
    assert differences(ours, ours) == ""
    text = differences(ours, theirs)
    assert "preset is sparse here and fp4 there" in text
    assert "model is mmmmmmmmmmmmmmmm... here" in text
    assert run_id(ours) != run_id(theirs)
    assert run_key(ours.name) == run_key(theirs.name)


@pytest.mark.parametrize("kind", [messages.Aggregate, messages.Upload])
def test_only_payloads_count_as_payload(kind: type) -> None:
    if kind is messages.Aggregate:
        assert messages.payload_bytes(messages.Aggregate(1, 2, b"12345")) == 5
    else:
        assert messages.payload_bytes(messages.Upload(1, 2, ALICE, b"1234", ())) == 4
    assert messages.payload_bytes(messages.Want(1, (2,), ())) == 0
