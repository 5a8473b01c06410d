"""Which way a joiner takes through what peers offer: to where most stand, past liars, with the fewest bytes."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.catch_up_messages import OFFERS, CatchUpOffer, CheckpointOffer, DeltaOffer, read_offer
from shoal.swarm.rounds.catch_up_plan import plan_catch_up, vouchers_needed
from shoal.swarm.transfer.block_transfer_listing import BundleId


def state(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def checkpoint(round_: int, size: int = 1000) -> CheckpointOffer:
    return CheckpointOffer(BundleId(f"checkpoint{round_}"), round_, state(round_), size)


def delta(round_: int, size: int = 10, after: bytes | None = None) -> DeltaOffer:
    name = f"delta{round_}" if after is None else f"lie{round_}"
    return DeltaOffer(BundleId(name), round_, state(round_ - 1), state(round_) if after is None else after, size)


def offer(head: int, checkpoints: tuple[int, ...] = (), deltas: range | tuple[int, ...] = ()) -> CatchUpOffer:
    return CatchUpOffer(state(head), head + 1, tuple(map(checkpoint, checkpoints)), tuple(map(delta, deltas)))


def peers(*offers: CatchUpOffer) -> dict[PeerId, CatchUpOffer]:
    return {PeerId(f"peer{i}"): made for i, made in enumerate(offers)}


def test_a_newcomer_takes_the_newest_checkpoint_and_the_rounds_since() -> None:
    plan = plan_catch_up(state("elsewhere"), peers(*[offer(12, (10, 5), range(6, 13))] * 3))
    assert plan is not None
    assert plan.checkpoint is not None
    assert plan.checkpoint.offer.round == 10
    assert plan.checkpoint.holders == ("peer0", "peer1", "peer2")
    assert [source.offer.round for source in plan.deltas] == [11, 12]
    assert (plan.state, plan.next_round) == (state(12), 13)


def test_who_is_near_takes_only_the_rounds_that_it_missed() -> None:
    plan = plan_catch_up(state(11), peers(*[offer(12, (10,), range(9, 13))] * 3))
    assert plan is not None
    assert plan.checkpoint is None
    assert [source.offer.round for source in plan.deltas] == [12]


def test_who_is_there_has_nothing_to_do_even_while_others_lag_behind() -> None:
    there, lagging = offer(12, (10,), range(9, 13)), offer(11, (10,), range(9, 12))
    for around in ([there, there, lagging, lagging, lagging], [lagging] * 3, [there] * 3):
        plan = plan_catch_up(state(12), peers(*around), history=[state(11), state(10)])
        assert plan is not None
        assert (plan.checkpoint, plan.deltas) == (None, ())


def test_who_followed_a_round_that_the_group_lost_goes_back_with_a_checkpoint() -> None:
    other = DeltaOffer(BundleId("other"), 13, state(11), state("other"), 10)
    group = CatchUpOffer(state("other"), 14, (checkpoint(10),), (delta(11), other))
    plan = plan_catch_up(state(12), peers(group, group, group), history=[state(11), state(10)])
    assert plan is not None
    assert plan.checkpoint is not None
    assert plan.state == state("other")


def test_before_the_first_round_everybody_is_there() -> None:
    plan = plan_catch_up(state(-1), peers(offer(-1), offer(-1)))
    assert plan is not None
    assert (plan.checkpoint, plan.deltas, plan.next_round) == (None, (), 0)


def test_a_long_way_of_rounds_gives_way_to_a_checkpoint_that_costs_less() -> None:
    offers = peers(*[offer(100, (99,), range(1, 101))] * 2)
    large = {p: replace_deltas(o, 500) for p, o in offers.items()}
    near, far = plan_catch_up(state(0), offers), plan_catch_up(state(0), large)
    assert near is not None
    assert far is not None
    assert near.checkpoint is None, "100 rounds of 10 bytes are as cheap as the checkpoint"
    assert far.checkpoint is not None
    assert [source.offer.round for source in far.deltas] == [100]


def replace_deltas(made: CatchUpOffer, size: int) -> CatchUpOffer:
    return CatchUpOffer(made.state, made.next_round, made.checkpoints, tuple(delta(d.round, size) for d in made.deltas))


def test_a_checkpoint_that_no_round_leads_on_from_is_of_no_use_when_another_is() -> None:
    plan = plan_catch_up(b"", peers(*[offer(20, (15, 9), range(10, 14))] * 1, *[offer(20, (9,), range(10, 21))] * 4))
    assert plan is not None
    assert plan.state == state(20)


def test_nothing_leads_on_when_nobody_has_a_checkpoint() -> None:
    assert plan_catch_up(state("elsewhere"), peers(*[offer(12, (), range(9, 13))] * 3)) is None
    assert plan_catch_up(state("elsewhere"), {}) is None


def test_a_round_that_few_claim_is_not_believed_yet() -> None:
    ahead = offer(13, (10,), range(9, 14))
    plan = plan_catch_up(state(10), peers(*[offer(12, (10,), range(9, 13))] * 4, ahead))
    assert plan is not None
    assert plan.state == state(12)
    most = plan_catch_up(state(10), peers(*[offer(12, (10,), range(9, 13))] * 2, *[ahead] * 3))
    assert most is not None
    assert most.state == state(13)


def test_liars_who_are_fewer_lead_nobody_astray() -> None:
    lie = CatchUpOffer(
        state("lie"), 14, (replace_state(checkpoint(13), state("lie")),), (delta(12), delta(13, after=state("lie")))
    )
    honest = offer(12, (10,), range(9, 13))
    for mine in (state(11), state("elsewhere")):
        plan = plan_catch_up(mine, peers(lie, lie, honest, honest, honest))
        assert plan is not None
        assert plan.state == state(12)
        assert all(source.offer.bundle.startswith("delta") for source in plan.deltas)


def replace_state(made: CheckpointOffer, other: bytes) -> CheckpointOffer:
    return CheckpointOffer(BundleId("lie"), made.round, other, made.total_bytes)


def test_a_checkpoint_that_most_have_comes_before_a_newer_one_of_few() -> None:
    few = CatchUpOffer(state(12), 13, (checkpoint(11), checkpoint(5)), tuple(map(delta, range(6, 13))))
    plan = plan_catch_up(b"", peers(few, *[offer(12, (5,), range(6, 13))] * 3))
    assert plan is not None
    assert plan.checkpoint is not None
    assert plan.checkpoint.offer.round == 5


def test_a_bundle_that_proved_bad_is_left_out() -> None:
    offers = peers(*[offer(12, (10, 5), range(6, 13))] * 3)
    without = plan_catch_up(b"", offers, {BundleId("checkpoint10")})
    assert without is not None
    assert without.checkpoint is not None
    assert without.checkpoint.offer.round == 5
    assert [source.offer.round for source in without.deltas] == [6, 7, 8, 9, 10, 11, 12]
    stuck = plan_catch_up(state(10), offers, {BundleId("delta12")})
    assert stuck is not None
    assert stuck.state == state(11)


def test_skipped_rounds_leave_no_gap_in_the_chain() -> None:
    skip = DeltaOffer(BundleId("skip"), 15, state(12), state(15), 10)
    made = CatchUpOffer(state(15), 17, (checkpoint(10),), (delta(11), delta(12), skip))
    plan = plan_catch_up(state(11), peers(made, made))
    assert plan is not None
    assert [source.offer.round for source in plan.deltas] == [12, 15]
    assert plan.next_round == 17


@pytest.mark.parametrize(("answering", "needed"), [(1, 1), (2, 1), (3, 2), (4, 3), (7, 4), (16, 9)])
def test_how_many_must_vouch(answering: int, needed: int) -> None:
    assert vouchers_needed(answering) == needed


@given(
    st.lists(
        st.builds(
            lambda head, checkpoints, edges: CatchUpOffer(
                state(head),
                head + 1,
                tuple(CheckpointOffer(BundleId(f"c{r}{s}"), r, state(s), 5) for r, s in checkpoints),
                tuple(DeltaOffer(BundleId(f"d{r}{a}{b}"), r, state(a), state(b), 5) for r, a, b in edges),
            ),
            st.integers(0, 5),
            st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=3),
            st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=8),
        ),
        max_size=5,
    ),
    st.integers(0, 5),
)
def test_whatever_is_offered_a_plan_is_a_chain_of_rising_rounds(offers: list[CatchUpOffer], mine: int) -> None:
    plan = plan_catch_up(state(mine), peers(*offers))
    if plan is None:
        return
    at = state(mine) if plan.checkpoint is None else plan.checkpoint.offer.state
    rounds = []
    for source in plan.deltas:
        assert source.offer.before == at
        assert source.holders
        at = source.offer.after
        rounds.append(source.offer.round)
    assert at == plan.state
    assert rounds == sorted(set(rounds))


def test_an_offer_with_impossible_numbers_is_refused() -> None:
    good = offer(12, (10,), range(9, 13))
    assert read_offer(OFFERS.encode(good)) == good
    for wrong in (
        replace_offer(good, state_=b"short"),
        replace_offer(good, next_round=-1),
        CatchUpOffer(good.state, 1, (CheckpointOffer(BundleId("c"), 1, state(1), -5),), ()),
        CatchUpOffer(good.state, 1, (), (DeltaOffer(BundleId("d"), 1, b"x", state(1), 5),)),
    ):
        with pytest.raises(MalformedMessage, match="impossible"):
            read_offer(OFFERS.encode(wrong))


def replace_offer(made: CatchUpOffer, state_: bytes | None = None, next_round: int = 3) -> CatchUpOffer:
    return CatchUpOffer(made.state if state_ is None else state_, next_round, made.checkpoints, made.deltas)
