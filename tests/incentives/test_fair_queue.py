"""Accounts that compete for one engine: shares by lane, newcomers first, nobody waits for ever."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from shoal.incentives.fair_queue import AGEING, FARTHEST, FairQueue
from shoal.incentives.lane_shares import has_room
from shoal.node.scheduler import Waiting, next_batch
from shoal.swarm.sessions.lanes import Claim, Lane
from shoal.swarm.units import Span

SPAN = Span(0, 4)
BATCH = 60
PAID = [Claim(f"paid {number}", Lane.PAID) for number in range(4)]
EARNED = Claim("earned", Lane.EARNED)
FREE = Claim("free", Lane.FREE)


class World:
    """An engine that only counts: one prompt at a time of each account, a new one as soon as it is through."""

    def __init__(self, prompts: Mapping[Claim, int]) -> None:
        self.queue = FairQueue()
        self.turn = 0
        self.done: Counter[Claim] = Counter()
        self.prompts = dict(prompts)
        self.waiting: dict[int, tuple[Claim, int, int]] = {}  # key -> flow, left, turn
        self.keys = 0
        for flow in prompts:
            self.submit(flow)

    def submit(self, flow: Claim) -> int:
        self.keys += 1
        self.waiting[self.keys] = flow, self.prompts[flow], self.turn
        return self.keys

    def step(self) -> list[int]:
        """returns: keys of the works that are through"""
        shown = [
            Waiting(key, SPAN, left, turn, self.queue.rank(flow), flow.lane)
            for key, (flow, left, turn) in self.waiting.items()
        ]
        batch = next_batch(shown, BATCH)
        self.turn += 1
        if batch is None:
            return []
        before = [flow for flow, _, _ in self.waiting.values()]
        through, positions = [], Counter[Claim]()
        for take in batch.takes:
            flow, left, _ = self.waiting.pop(take.key)
            positions[flow] += take.count
            if left > take.count:
                self.waiting[take.key] = flow, left - take.count, self.turn
            else:
                through.append(take.key)
        self.queue.served(positions, before, [flow for flow, _, _ in self.waiting.values()])
        self.done += positions
        return through

    def run(self, turns: int, again: Callable[[Claim], bool] = lambda _: True) -> None:
        for _ in range(turns):
            before = dict(self.waiting)
            for key in self.step():
                if again(before[key][0]):
                    self.submit(before[key][0])


def shares(done: Counter[Claim], flows: Sequence[Claim]) -> list[float]:
    total = sum(done.values())
    return [done[flow] / total for flow in flows]


def test_lanes_that_all_wait_share_an_engine_by_their_weight() -> None:
    world = World({PAID[0]: 200, EARNED: 200, FREE: 200})
    world.run(1000)
    paid, earned, free = shares(world.done, [PAID[0], EARNED, FREE])
    assert 0.15 <= free <= 0.20
    assert abs(paid / earned - 1.5) < 0.1


def test_accounts_of_one_lane_have_equal_parts_however_much_each_asks() -> None:
    world = World({PAID[0]: 50, PAID[1]: 1000})
    for _ in range(20):
        world.submit(PAID[1])  # twenty sessions of one account
    world.run(1000)
    one, other = shares(world.done, PAID[:2])
    assert 0.4 < one < 0.6
    assert one + other == 1.0


def test_a_lane_has_its_share_however_many_accounts_wait_in_the_others() -> None:
    crowd = {Claim(f"free {number}", Lane.FREE): 100 for number in range(50)}
    world = World(crowd | {PAID[0]: 100})
    world.run(600)
    assert shares(world.done, [PAID[0]])[0] >= 0.8


def test_a_newcomer_under_full_paid_load_is_served_in_the_first_batches() -> None:
    world = World(dict.fromkeys(PAID, 2000))
    world.run(50)
    world.prompts[FREE] = 64
    key = world.submit(FREE)
    for turn in range(64 // (BATCH // 6) + 1):
        if key in world.step():
            break
        assert turn < 64 // (BATCH // 6)


def test_whoever_was_idle_has_saved_nothing_up() -> None:
    world = World(dict.fromkeys(PAID[:2], 500))
    world.run(500)
    world.prompts[PAID[2]] = 500
    world.submit(PAID[2])
    before = Counter(world.done)
    world.run(300)
    gained = [world.done[flow] - before[flow] for flow in PAID[:3]]
    assert max(gained) <= 1.25 * min(gained)


def test_an_account_that_is_far_ahead_is_served_though_newcomers_never_end() -> None:
    """Each turn brings fresh accounts that together fill the batch: without ageing the old one would wait for ever."""
    world = World({PAID[0]: 10**6})
    for number in range(20):
        world.prompts[Claim(f"early {number}", Lane.PAID)] = 300
        world.submit(Claim(f"early {number}", Lane.PAID))
    world.run(100, again=lambda flow: flow is PAID[0])
    served = world.done[PAID[0]]
    for turn in range(int(FARTHEST / AGEING) + 100):
        fresh = Claim(f"fresh {turn}", Lane.PAID)
        world.prompts[fresh] = BATCH
        world.submit(fresh)
        world.step()
    assert world.done[PAID[0]] > served


flows = st.builds(Claim, st.sampled_from("abc"), st.sampled_from(Lane))


@given(st.lists(st.tuples(flows, st.integers(1, 400)), min_size=1, max_size=12))
def test_every_work_is_through_in_the_end_and_virtual_time_never_runs_back(works: list[tuple[Claim, int]]) -> None:
    world = World({})
    for flow, left in works:
        world.prompts[flow] = left
        world.submit(flow)
    last = 0.0
    for _ in range(2000):
        world.step()
        assert world.queue.now >= last
        last = world.queue.now
        if not world.waiting:
            break
    assert not world.waiting
    assert sum(world.done.values()) == sum(left for _, left in works) or len({f for f, _ in works}) < len(works)


def test_paying_sessions_leave_the_share_of_newcomers_and_newcomers_leave_room_for_who_pays() -> None:
    assert has_room(Lane.PAID, 500, 0, 500, 1200)
    assert not has_room(Lane.PAID, 501, 0, 500, 1200)
    assert has_room(Lane.FREE, 200, 0, 1000, 1200)
    assert not has_room(Lane.FREE, 201, 0, 1000, 1200)
    assert has_room(Lane.FREE, 700, 0, 0, 1200)
    assert not has_room(Lane.FREE, 701, 0, 0, 1200)
    assert has_room(Lane.PAID, 500, 700, 0, 1200)
