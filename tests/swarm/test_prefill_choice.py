"""Whether another peer had better compute a prompt, from records alone; and what the first hop does meanwhile."""

import math
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from swarm.people import MODEL, hosted

from shoal.swarm.identifiers import PeerId
from shoal.swarm.prefixes.prefill_race import PATIENCE, SLACK_S, PrefillRace
from shoal.swarm.prefixes.prefix_race import Compute, Skip, Wait
from shoal.swarm.records import NodeRecord
from shoal.swarm.routing.chain_plan import ChainPlan, PlannedHop
from shoal.swarm.routing.chain_planner import DirectoryPlanner
from shoal.swarm.routing.link_speed import LinkSpeed
from shoal.swarm.routing.prefill_choice import WORTH, PrefillChoice, choose_prefill
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.simulated.peer import SWARM
from shoal.swarm.units import Span, parse

LAYERS = 6
KV_BYTES = 6 * 4096  # of a position, all layers
FRONT, BACK, STRONG = PeerId("front"), PeerId("back"), PeerId("strong")
CHAIN = [(FRONT, parse("embed+0:3", LAYERS)), (BACK, parse("3:6+head", LAYERS))]
WHOLE = parse("embed+0:6", LAYERS)


def peer(
    name: str, layers: str, prefill_ms: float, link_byte_s: float = 12.5e6, rtt_ms: float = 10.0, **changes: object
) -> NodeRecord:
    span = parse(layers, LAYERS)
    kv_bytes = KV_BYTES * len(range(max(0, span.start - 1), min(LAYERS, span.stop - 1))) // LAYERS
    item = replace(hosted(span, prefill_ms=prefill_ms, kv_bytes=kv_bytes), **changes)
    others = {PeerId(other): rtt_ms for other in ("front", "back", "strong")}
    return NodeRecord(PeerId(name), SWARM, name, "0", 1, (), (item,), others, 0.0, 1e12, link_byte_s=link_byte_s)


def swarm(strong_ms: float = 0.5, slow_ms: float = 10.0, **strong: object) -> list[NodeRecord]:
    slow = [peer("front", "embed+0:3", slow_ms / 2), peer("back", "3:6+head", slow_ms / 2)]
    return [*slow, peer("strong", "all", strong_ms, **strong)]  # type: ignore[arg-type]


def chosen(records: list[NodeRecord], positions: int = 1000, **options: object) -> PrefillChoice | None:
    rtts = {record.peer: 10.0 for record in records}
    return choose_prefill(
        records,
        MODEL,
        "float32",
        CHAIN,
        positions,
        me_rtt_ms=rtts,
        **options,  # type: ignore[arg-type]
    )


def is_worth_it(records: list[NodeRecord], positions: int = 1000, **options: object) -> bool:
    choice = chosen(records, positions, **options)
    return choice is not None and choice.is_worth_it


def test_a_peer_that_is_much_faster_computes_the_prompt() -> None:
    choice = chosen(swarm())
    assert choice is not None
    assert choice.is_worth_it
    assert [(hop.peer, hop.span) for hop in choice.hops] == [(STRONG, WHOLE)]
    # 256 positions through both hops, then the rest at the pace of one
    assert choice.own_s == pytest.approx(256 * 0.01 + 744 * 0.005, rel=0.05)
    assert choice.apart_s == pytest.approx(1000 * KV_BYTES * 0.84 / 12.5e6, rel=0.25)
    assert choice.own_chunk_s == pytest.approx(64 * 0.005)


@pytest.mark.parametrize(
    ("what", "records", "positions"),
    [
        ("not much faster", swarm(strong_ms=6.0), 1000),
        ("a short prompt", swarm(), 40),
        ("a slow link", swarm(link_byte_s=2e6), 1000),
        ("nothing measured", swarm(strong_ms=0.0), 1000),
        ("no bytes known", swarm(kv_bytes=0), 1000),
        ("no room", swarm(free_tokens=999), 1000),
        ("another dtype", swarm(dtype="bfloat16"), 1000),
        ("far behind", swarm(rtt_ms=8000.0), 1000),
        ("busy", swarm(strong_ms=2.0, queue=40), 1000),
    ],
)
def test_where_it_does_not_pay_nobody_is_asked(what: str, records: list[NodeRecord], positions: int) -> None:
    assert not is_worth_it(records, positions), what


def test_what_may_lose_something_pays_over_a_slower_link() -> None:
    records = swarm(link_byte_s=1e6)
    assert not is_worth_it(records, exact=True)
    assert is_worth_it(records, exact=False)
    slow, fast = (
        chosen(records, exact=False),
        chosen([replace(record, link_byte_s=1e9) for record in swarm()], exact=False),
    )
    assert slow is not None
    assert fast is not None
    assert not slow.exact
    assert fast.exact, "nothing is lost where that would gain nothing"


def test_whom_the_client_does_not_want_and_who_has_failed_are_not_asked() -> None:
    assert is_worth_it(swarm())
    assert not is_worth_it(swarm(), exclude={STRONG})
    assert not is_worth_it(swarm(), trust={FRONT, BACK})
    assert is_worth_it(swarm(), trust={FRONT, BACK, STRONG})
    assert not is_worth_it(swarm(), penalties_ms={STRONG: 2000.0})
    assert is_worth_it(swarm(), penalties_ms={STRONG: 20.0})


def test_a_peer_that_holds_a_part_is_helped_by_the_hop_that_has_the_rest() -> None:
    records = [peer("front", "embed+0:3", 0.5), peer("back", "3:6+head", 10.0), peer("strong", "3:6", 0.5)]
    choice = chosen(records)
    assert choice is not None
    assert choice.is_worth_it
    assert [(hop.peer, hop.span) for hop in choice.hops] == [(FRONT, Span(0, 4)), (STRONG, Span(4, 7))]


def test_two_peers_that_are_fast_share_it_where_nobody_holds_all() -> None:
    slow = [peer("front", "embed+0:3", 5.0), peer("back", "3:6+head", 5.0)]
    choice = chosen([*slow, peer("strong", "embed+0:3", 0.3), peer("strong 2", "3:6+head", 0.3)])
    assert choice is not None
    assert choice.is_worth_it
    assert [hop.peer for hop in choice.hops] == ["strong", "strong 2"]


def test_a_peer_that_is_named_is_asked_whether_it_pays_or_not() -> None:
    records = [*swarm(strong_ms=0.0), peer("strong 2", "all", 0.1)]
    choice = chosen(records, named=STRONG)
    assert choice is not None
    assert [hop.peer for hop in choice.hops] == [STRONG]
    assert choice.first_s == choice.chunk_s == 0.0, "nobody knows"
    quick = [peer("front", "embed+0:3", 0.1), peer("back", "3:6+head", 0.1), peer("strong", "all", 9.0)]
    choice = chosen(quick, named=STRONG)
    assert choice is not None
    assert [hop.peer for hop in choice.hops] == [STRONG], "all that it can"
    part = [peer("front", "embed+0:3", 5.0), peer("back", "3:6+head", 5.0), peer("strong", "3:6", 9.0)]
    choice = chosen(part, named=STRONG)
    assert choice is not None
    assert [hop.peer for hop in choice.hops] == [FRONT, STRONG]
    assert chosen(part, named=PeerId("nobody")) is None
    assert chosen([*part[:2], peer("strong", "4:6", 9.0)], named=STRONG) is None, "it lacks a layer of every hop"


def test_a_prompt_that_is_paid_slice_by_slice_pays_with_a_round_trip_for_each() -> None:
    fast = [replace(record, link_byte_s=1e9) for record in swarm()]
    free, paid = chosen(fast), chosen(fast, slice_tokens=32)
    assert free is not None
    assert paid is not None
    assert paid.apart_s > free.apart_s
    assert paid.own_s > free.own_s + 32 * 0.01


@given(
    strong_ms=st.floats(0.01, 20),
    slow_ms=st.floats(0.01, 50),
    link=st.floats(1e5, 1e9),
    positions=st.integers(64, 8000),
    exact=st.booleans(),
)
def test_it_is_a_matter_of_time_alone(
    strong_ms: float, slow_ms: float, link: float, positions: int, exact: bool
) -> None:
    """No less time than computing takes, nor than the link takes; a faster peer or link is never worse."""
    records = swarm(strong_ms, slow_ms, link_byte_s=link, free_tokens=10_000)
    choice = chosen(records, positions, exact=exact)
    assert choice is not None
    share = 0.84 if choice.exact else 0.045
    assert choice.exact or not exact
    if [hop.peer for hop in choice.hops] == [STRONG]:
        assert choice.apart_s >= positions * strong_ms * 7 / 8 / 1e3 * 0.99
        assert choice.apart_s >= positions * KV_BYTES * share / min(link, 12.5e6) * 0.99
    better = chosen(swarm(strong_ms / 2, slow_ms, link_byte_s=link, free_tokens=10_000), positions, exact=exact)
    assert better is not None
    weighed, weighed_better = (each.apart_s / (1.0 if each.exact else WORTH) for each in (choice, better))
    assert weighed_better <= weighed + 1e-9
    assert 0 < choice.first_s <= choice.apart_s + 0.1


# The race


def run(
    arrivals: list[float], own_s: float, positions: int, *, first_s: float = 0.5, own_known: bool = True
) -> tuple[float, int]:
    """arrivals: when each chunk has come to all hops, in order. own_s: of a chunk at the chain.

    returns: when the last position is there, and how many were computed
    """
    chunk_s = arrivals[1] - arrivals[0] if len(arrivals) > 1 else 0.0
    race = PrefillRace(positions, 0.0, first_s, chunk_s, own_s if own_known else 0.0)
    now, position, computed = 0.0, 0, 0
    while position < positions:
        came = sum(at <= now for at in arrivals)
        at_s = arrivals[came - 1] if came else 0.0
        race.came(64 * came, at_s)
        match race.next(position, positions - position, now):
            case Skip(stop):
                assert position < stop <= 64 * came
                position = stop
            case Compute(count):
                assert 1 <= count <= positions - position
                now += count * own_s / 64
                position += count
                computed += count
            case Wait(until_s):
                assert until_s > now
                news = next((at for at in arrivals if at > now), until_s)
                now = min(until_s, news)
    return now, computed


def test_nothing_is_computed_while_all_comes_as_expected() -> None:
    arrivals = [0.5 + 0.05 * number for number in range(16)]
    done_s, computed = run(arrivals, 0.4, 1024)
    assert computed == 0
    assert done_s == pytest.approx(arrivals[-1])


def test_who_never_sends_anything_costs_one_wait() -> None:
    done_s, computed = run([], 0.4, 1024)
    assert computed == 1024
    assert done_s <= 16 * 0.4 + PATIENCE * 0.5 + SLACK_S + 1e-6


@given(
    chunk_s=st.floats(0.01, 3.0),
    own_s=st.floats(0.01, 3.0),
    stops=st.integers(0, 16),
    first_s=st.floats(0.05, 2.0),
)
def test_it_is_never_much_slower_than_the_chain_alone(chunk_s: float, own_s: float, stops: int, first_s: float) -> None:
    arrivals = [first_s + chunk_s * number for number in range(stops)]
    done_s, _ = run(arrivals, own_s, 1024, first_s=first_s)
    alone_s = 16 * own_s
    wait_s = PATIENCE * first_s + SLACK_S
    burst_s = PATIENCE * 2 * chunk_s + SLACK_S
    assert done_s <= max(alone_s, arrivals[-1] if arrivals else 0.0) + wait_s + 4 * chunk_s + burst_s + own_s


@pytest.mark.parametrize("said", [math.inf, -math.inf, math.nan, -1.0])
def test_times_that_are_none_are_as_good_as_unknown(said: float) -> None:
    odd, unknown = PrefillRace(1000, 0.0, said, said, said), PrefillRace(1000, 0.0)
    for race in (odd, unknown):
        race.came(128, 0.5)
    for now in (0.5, 5.0, 1e6):
        assert odd.next(128, 500, now) == unknown.next(128, 500, now)


def test_a_chunk_that_is_audited_is_computed_and_the_rest_is_not() -> None:
    race = PrefillRace(640, 0.0, audited=3)
    race.came(640, 0.1)
    assert race.next(0, 256, 0.1) == Skip(192)
    assert race.next(192, 64, 0.1) == Compute(64)
    assert race.next(256, 256, 0.1) == Skip(640)
    assert race.next(640, 5, 0.1) == Compute(5)


def test_what_is_forgotten_is_computed() -> None:
    race = PrefillRace(640, 0.0)
    race.came(128, 0.1)
    race.forget()
    race.came(640, 0.2)
    assert race.next(0, 256, 0.2) == Compute(256)


# The link


def test_a_link_is_believed_as_fast_as_it_has_shown_itself() -> None:
    times = [0.0]
    link = LinkSpeed(lambda: times[0])
    assert link.byte_s == 0.0
    flow = link.flow()
    for _ in range(40):
        flow.came(100_000)
        times[0] += 0.01
    assert link.byte_s == pytest.approx(1e7, rel=0.2)
    for _ in range(10):  # whoever sends is slow, not the link
        times[0] += 1.0
        flow.came(100_000)
    assert link.byte_s > 7e6
    times[0] += 1e7
    assert link.byte_s == 0.0


def test_small_messages_say_nothing_of_a_link() -> None:
    async def measure() -> None:
        link = LinkSpeed()
        flow = link.flow()
        flow.came(10)
        flow.came(10)
        assert link.byte_s == 0.0

    anyio.run(measure)


# The planner


class Everybody:
    """A directory that knows these, and the driver's round trips to them."""

    me = PeerId("driver")

    def __init__(self, records: list[NodeRecord], rtts_ms: dict[PeerId, float]) -> None:
        self._records = records
        self.book: Any = self
        self._rtts_ms = rtts_ms

    def holders(self, model: object, now: float | None = None) -> object:
        return self._records if now is not None else self._looked_up()

    async def _looked_up(self) -> list[NodeRecord]:
        return self._records

    def rtt_ms(self) -> dict[PeerId, float]:
        return self._rtts_ms

    async def measure_unknown(self, records: object, within_s: float) -> None:
        return

    async def answering(self, records: list[NodeRecord], within_s: float) -> set[PeerId]:
        return set()


def planned(records: list[NodeRecord], far_ms: float = 200.0, *, whole: bool = True, **options: object) -> ChainPlan:
    rtts_ms = {record.peer: far_ms if record.peer == STRONG else 2.0 for record in records}
    everybody: Any = Everybody(records, rtts_ms)
    planner = DirectoryPlanner(everybody, everybody, everybody, lambda: 0.0, lambda: 0.0)
    request = TokenRequest(MODEL, tuple(range(1, 1001)), 20, **options)  # type: ignore[arg-type]
    wanted = Plan(1, Span(0, LAYERS + 2), frozenset(), None, None, 8, 0.0, whole)
    return anyio.run(planner.plan, request, wanted, None)


def peers(hops: tuple[PlannedHop, ...]) -> list[PeerId]:
    return [hop.peer for hop in hops]


def far() -> list[NodeRecord]:
    """A strong peer far away: for single tokens the near ones are sooner, for a prompt it is."""
    near = [replace(record, rtt_ms={FRONT: 2.0, BACK: 2.0, STRONG: 200.0}) for record in swarm()]
    return [*near[:2], replace(near[2], rtt_ms={FRONT: 200.0, BACK: 200.0})]


def test_near_peers_decode_and_a_strong_one_far_away_prefills() -> None:
    plan = planned(far())
    assert peers(plan.hops) == [FRONT, BACK]
    assert plan.prefill is not None
    assert peers(plan.prefill.hops) == [STRONG]
    assert plan.prefill.hops[0].span == WHOLE
    assert plan.prefill.first_s > 0


@pytest.mark.parametrize(
    "options", [{"prefill": "never"}, {"share_prefix": True}, {"session": "a name of my own"}, {"local_layers": 1}]
)
def test_clients_that_want_something_else_have_nobody_prefill(options: dict[str, object]) -> None:
    assert planned(far(), **options).prefill is None


def test_in_the_middle_of_a_session_nobody_prefills() -> None:
    assert planned(far(), whole=False).prefill is None


def test_who_is_named_prefills_and_does_not_decode() -> None:
    assert peers(planned(swarm(), 2.0).hops) == [STRONG]
    plan = planned(swarm(), 2.0, prefill=STRONG)
    assert peers(plan.hops) == [FRONT, BACK]
    assert plan.prefill is not None
    assert peers(plan.prefill.hops) == [STRONG]
    alone = planned(swarm()[2:], 2.0, prefill=STRONG)
    assert peers(alone.hops) == [STRONG], "nobody else is there"
    assert alone.prefill is None
    assert "answers itself" in alone.no_prefill
    nobody = planned(swarm(), 2.0, prefill="nobody")
    assert nobody.prefill is None
    assert "does not hold" in nobody.no_prefill


def test_a_record_that_says_something_else_of_the_model_is_not_believed() -> None:
    """It would have the prompt computed for fewer layers than there are."""
    liars = [peer(f"liar {n}", "embed+0:6", 0.01, rtt_ms=0.1) for n in range(20)]
    liars = [replace(liar, hosted=(replace(liar.hosted[0], layers=0, span=Span(0, 2)),)) for liar in liars]
    assert chosen([*liars, *swarm()]) == chosen(swarm())
