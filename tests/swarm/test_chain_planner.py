"""The planner of a driver over a directory that changes between two plans."""

from dataclasses import replace

import anyio
import pytest
from msgspec import structs

from shoal.swarm.errors import ModelNotServable
from shoal.swarm.identifiers import ModelId, PeerId, SwarmId
from shoal.swarm.records import Hosted, NodeRecord
from shoal.swarm.routing.chain_planner import DirectoryPlanner
from shoal.swarm.routing.latency import LatencyBook
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.units import whole

MODEL, LAYERS = ModelId("a" * 64), 4
VOLUNTEER = PeerId("volunteer")
REQUEST = TokenRequest(MODEL, (1, 2, 3), 8)


def record(started_at: float, port: int) -> NodeRecord:
    hosted = Hosted(MODEL, "tiny", LAYERS, whole(LAYERS), "float32", 1.0, 0, 4096, 4096)
    address = f"/ip4/127.0.0.1/tcp/{port}"
    return NodeRecord(VOLUNTEER, SwarmId("s"), "v", "0.1.0", 1, (address,), (hosted,), {}, started_at, 1e12)


class Listing:
    """A directory and its book: `known` is what this machine remembers, `current` what a look-up brings."""

    def __init__(self, known: NodeRecord) -> None:
        self.known = self.current = known
        self.book = self  # type: ignore[assignment]

    def holders(self, model: ModelId, now: float | None = None) -> object:
        return [self.known] if now is not None else self._looked_up()

    async def _looked_up(self) -> list[NodeRecord]:
        self.known = self.current
        return [self.current]


class Measured:
    me = PeerId("driver")

    def __init__(self) -> None:
        self.book = LatencyBook()
        self.alive = True

    async def measure_unknown(self, records: object, within_s: float) -> None:
        return

    async def answering(self, records: list[NodeRecord], within_s: float) -> set[PeerId]:
        return {each.peer for each in records} if self.alive else set()


def planned_ports(planner: DirectoryPlanner, exclude: frozenset[PeerId], request: TokenRequest = REQUEST) -> list[str]:
    async def plan() -> list[str]:
        wanted = Plan(1, whole(LAYERS), exclude, None, None, 4, 0.0)
        chain = await planner.plan(request, wanted, None)
        return [address.rsplit("/", 1)[1] for hop in chain.hops for address in hop.addresses]

    return anyio.run(plan)


def test_a_peer_that_failed_counts_again_when_it_has_restarted() -> None:
    listing = Listing(record(100.0, 5001))
    planner = DirectoryPlanner(listing, None, Measured(), lambda: 0.0, lambda: 0.0)  # type: ignore[arg-type]
    assert planned_ports(planner, frozenset()) == ["5001"]
    failed = frozenset({VOLUNTEER})
    with pytest.raises(ModelNotServable):
        planned_ports(planner, failed)
    listing.current = record(200.0, 5002)
    assert planned_ports(planner, failed) == ["5002"], "looked up: the new process at its new address"
    with pytest.raises(ModelNotServable):
        planned_ports(planner, failed)


def test_a_newer_record_of_a_peer_that_is_dead_brings_it_into_no_chain() -> None:
    """The plan was older than the process that failed."""
    listing, peers = Listing(record(100.0, 5001)), Measured()
    planner = DirectoryPlanner(listing, None, peers, lambda: 0.0, lambda: 0.0)  # type: ignore[arg-type]
    assert planned_ports(planner, frozenset()) == ["5001"]
    listing.current, peers.alive = record(200.0, 5002), False
    with pytest.raises(ModelNotServable):
        planned_ports(planner, frozenset({VOLUNTEER}))


def test_whom_the_user_excludes_stays_out_when_restarted() -> None:
    listing = Listing(record(100.0, 5001))
    planner = DirectoryPlanner(listing, None, Measured(), lambda: 0.0, lambda: 0.0)  # type: ignore[arg-type]
    assert planned_ports(planner, frozenset()) == ["5001"]
    listing.current = record(200.0, 5002)
    unwanted = replace(REQUEST, exclude=frozenset({VOLUNTEER}))
    with pytest.raises(ModelNotServable):
        planned_ports(planner, unwanted.exclude, unwanted)


def test_a_process_that_failed_in_another_session_is_looked_up_before_it_is_tried_again() -> None:
    listing = Listing(record(100.0, 5001))
    planner = DirectoryPlanner(listing, None, Measured(), lambda: 0.0, lambda: 0.0)  # type: ignore[arg-type]
    assert planned_ports(planner, frozenset()) == ["5001"]
    planner.blame(VOLUNTEER)
    listing.current = record(200.0, 5002)
    assert planned_ports(planner, frozenset()) == ["5002"]


def test_a_process_that_failed_is_tried_again_when_nobody_else_is_there() -> None:
    listing = Listing(record(100.0, 5001))
    planner = DirectoryPlanner(listing, None, Measured(), lambda: 0.0, lambda: 0.0)  # type: ignore[arg-type]
    planned_ports(planner, frozenset())
    planner.blame(VOLUNTEER)
    assert planned_ports(planner, frozenset()) == ["5001"]


def test_standing_is_a_cost_that_a_plan_weighs_against_speed() -> None:
    class Suspicious:
        def cost_ms(self, peer: PeerId) -> float:
            return 50.0 if peer == VOLUNTEER else 0.0

        def shown(self, peer: PeerId) -> float | None:
            return None

    other = record(100.0, 5002)
    hosted = structs.replace(other.hosted[0], step_ms=20.0)
    slower = structs.replace(other, peer=PeerId("slower"), hosted=(hosted,))
    listing = Listing(record(100.0, 5001))
    listing.holders = lambda *_: [listing.known, slower]  # type: ignore[method-assign]
    planner = DirectoryPlanner(listing, None, Measured(), lambda: 0.0, lambda: 0.0)  # type: ignore[arg-type]
    assert planned_ports(planner, frozenset()) == ["5001"]
    planner.standing = Suspicious()
    assert planned_ports(planner, frozenset()) == ["5002"]
