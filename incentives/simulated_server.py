"""A machine of the simulated economy: works that wait, and quanta of time in which some of them are computed.

Which of them is decided by the rules of a node: virtual time for the accounts, the free lane's share, room for
sessions. A quantum stands for some batches; a node's own scheduler does the same for each batch.
"""

from collections import Counter
from dataclasses import dataclass, field

from shoal.swarm.sessions.lanes import Claim, Lane

from .fair_queue import FairQueue
from .lane_shares import free_positions, has_room

QUANTUM_S = 120.0
POSITIONS_S = 4  # that a machine computes of a large model
QUANTUM = int(QUANTUM_S * POSITIONS_S)
ROOM = 64 * 1024  # positions of sessions that are open
HOURS_A_DAY = 2  # that a machine is given


@dataclass(slots=True)
class Work:
    session: int
    claim: Claim
    size: int
    came_s: float
    left: int = field(init=False)
    began_s: float | None = None

    def __post_init__(self) -> None:
        self.left = self.size


@dataclass(slots=True)
class Server:
    queue: FairQueue = field(default_factory=FairQueue)
    works: dict[int, Work] = field(default_factory=dict)
    busy: bool = False
    from_hour: int = 0  # of the day

    @property
    def left(self) -> int:
        return sum(work.left for work in self.works.values())

    def is_given(self, now_s: float) -> bool:
        """Whether it takes sessions at this hour; what it has begun it finishes."""
        return (int(now_s) // 3600 - self.from_hour) % 24 < HOURS_A_DAY

    def has_room(self, lane: Lane, size: int) -> bool:
        held = Counter[bool]()
        for work in self.works.values():
            held[work.claim.lane is Lane.FREE] += work.size
        return has_room(lane, size, held[True], held[False], ROOM)

    def quantum(self, now_s: float) -> list[Work]:
        """Compute for QUANTUM_S. returns: what is done"""
        before = [work.claim for work in self.works.values()]
        crowded = any(claim.lane is not Lane.FREE for claim in before)
        free_left = free_positions(QUANTUM) if crowded else QUANTUM
        others_left = QUANTUM
        if crowded and any(claim.lane is Lane.FREE for claim in before):
            wanted = sum(work.left for work in self.works.values() if work.claim.lane is Lane.FREE)
            others_left -= min(free_left, wanted)
        positions = Counter[Claim]()
        for work in sorted(self.works.values(), key=lambda w: (self.queue.rank(w.claim), w.came_s, w.session)):
            free = work.claim.lane is Lane.FREE
            count = min(work.left, free_left if free else others_left)
            if count <= 0:
                continue
            if free:
                free_left -= count
            else:
                others_left -= count
            work.began_s = now_s if work.began_s is None else work.began_s
            work.left -= count
            positions[work.claim] += count
        done = [work for work in self.works.values() if not work.left]
        for work in done:
            del self.works[work.session]
        self.queue.served(positions, before, [work.claim for work in self.works.values()])
        return done
