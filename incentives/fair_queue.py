"""Whose turn it is: virtual time of the accounts that compete for one engine.

Each account of a lane is a flow. It starts where the virtual time stands, and each position that is computed for it
moves it on, the less the more its lane weighs; the flow that is furthest behind is next. The virtual time is that of
the flow furthest behind among those that wait. So whoever comes anew comes in first, an idle time earns nothing, and
accounts of one lane share the lane's weight, however many they are.

source: Goyal, Vin and Cheng, Start-time Fair Queuing, IEEE/ACM Transactions on Networking 5(5), 1997
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from shoal.swarm.sessions.lanes import Claim

from .lane_shares import WEIGHTS

FARTHEST = 8192.0  # positions that a flow is ahead at most: what it had beyond is forgiven
AGEING = 32.0  # positions by which each batch without it brings a waiting flow forward

# A flow that waits is therefore never behind one that came FARTHEST / AGEING batches later.


class FairQueue:
    """now: virtual time, in positions of a flow that has a weight of one to itself"""

    def __init__(self) -> None:
        self.now = 0.0
        self._ahead: dict[Claim, float] = {}  # of flows that are ahead of `now`
        self._batches = 0
        self._since: dict[Claim, int] = {}  # of flows that wait: the batch that served them last, or that they came by

    def start(self, flow: Claim) -> float:
        """Where the flow stands."""
        return max(self.now, self._ahead.get(flow, 0.0))

    def rank(self, flow: Claim) -> float:
        """Its place among the flows that wait, least first."""
        return self.start(flow) - AGEING * (self._batches - self._since.get(flow, self._batches))

    def served(self, positions: Mapping[Claim, int], waiting: Iterable[Claim], left: Iterable[Claim]) -> None:
        """Count a batch.

        positions: computed for each flow
        waiting: the flows that waited before the batch; left: those that wait after it. With none left nobody was
        held up by anybody, and all are even again.
        """
        behind = set(left)
        if not behind:
            self._ahead.clear()
            self._since.clear()
            return
        self._batches += 1
        self._since = {
            flow: self._batches if positions.get(flow) else self._since.get(flow, self._batches) for flow in behind
        }
        sharers = Counter(flow.lane for flow in set(waiting))
        for flow, count in positions.items():
            self._ahead[flow] = self.start(flow) + count * max(1, sharers[flow.lane]) / WEIGHTS[flow.lane]
        self.now = max(self.now, min(self.start(flow) for flow in behind))
        limit = self.now + FARTHEST
        self._ahead = {flow: min(at, limit) for flow, at in self._ahead.items() if at > self.now}
