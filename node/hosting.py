"""What a node hosts, and how that changes: chosen and loaded at its start, exchanged for other layers while it runs.

Other layers are loaded beside the old ones where memory allows both; sessions on the old ones are then handed over to
successors and the old ones let go. Where memory does not, sessions go first. The weights are fetched before either, so
that a node serves nothing for no longer than it takes to load from its own disk. If that fails, it takes back what it
had.
"""

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import structlog

from shoal.swarm.errors import Unavailable, UsageError
from shoal.swarm.manifest import ADAPTER
from shoal.swarm.records import Coming, NodeRecord
from shoal.swarm.routing.placement import Placement
from shoal.swarm.sessions.hop_server import Drained
from shoal.swarm.units import Span, describe

from .hosted_models import HostedModel
from .model_loading import Loader, free_weights
from .node_events import LayersMoved, LayersMoving, NodeEvent, WeightsMissing
from .options import BY_NEED
from .peer_folder import PeerFolder
from .peer_model import kept_model

if TYPE_CHECKING:
    from .engine import Engine
    from .node import Node

T = TypeVar("T")
log = structlog.get_logger(__name__)
LOOKS, LOOK_S = 3, 0.5  # for what the swarm serves, before a node takes the default
DRAIN_S = 60.0  # that sessions of layers that are let go may take to go elsewhere
GRACE_S = 3.0  # between the word that layers are let go and their end: drivers plan with records of some seconds ago
Report = Callable[[NodeEvent], None]


@dataclass(slots=True)
class Move:
    """Under way, for status. before: None when the node held nothing"""

    before: Span | None
    placement: Placement
    stage: str = "fetching"  # handing over, loading
    drained: Drained | None = None


class Hosting:
    """Of one node, and one model. `stop` it with the node."""

    def __init__(self, node: "Node", report: Report) -> None:
        self._node, self._report = node, report
        self._loop_thread = threading.get_ident()
        self._older: list[Engine] = []  # whose sessions are being handed over
        self._fetching: anyio.CancelScope | None = None  # for other layers, in a running node
        self._lacking = ""
        self.loader: Loader | None = None  # None: a gateway, so far
        self.coming: tuple[Coming, ...] = ()  # as our record says
        self.move: Move | None = None
        self.moves = 0

    @property
    def held(self) -> HostedModel | None:
        return next(iter(self._node.hosted), None)

    def told_move(self) -> dict[str, Any] | None:
        """For status."""
        move, loader = self.move, self.loader
        if move is None or loader is None:
            return None
        layers = loader.budget.layers
        return {
            "model": loader.model.model_id,
            "name": loader.model.manifest.name,
            "before": None if move.before is None else describe(move.before, layers),
            "layers": describe(move.placement.span, layers),
            "reason": move.placement.reason,
            "stage": move.stage,
            "sessions": None if move.drained is None else asdict(move.drained),
        }

    async def start(self, records: list[NodeRecord]) -> None:
        """Load the layers that are needed and serve them.

        raises: UsageError, OutOfMemory, Unavailable, RemoteFault
        """
        node = self._node
        if node.options.model is None:
            return
        for _ in range(LOOKS if node.options.model == BY_NEED and node.invites is None else 0):
            if any(record.hosted for record in records if record.peer != node.transport.me):
                break
            await anyio.sleep(LOOK_S)  # a member that has just come may not know the others yet
            records = await node.loops.look()
        model = await node.finder(self._tell).find(node.options.model, records)
        if model.manifest.model_type == ADAPTER:
            raise UsageError(f"{model.manifest.name} is an adapter; shoal carries adapters and does not serve them")
        loader = await self._on_thread(partial(Loader.of, node.options, model))
        placement = loader.place(node.options.layers, records, node.transport.me)
        self._tell(loader.chosen(placement))
        await self._on_thread(partial(loader.fetch, placement.span, self._tell))
        self.loader = loader
        self._take(await self._on_thread(partial(loader.load, placement.span, self._tell)))

    async def give(self) -> None:
        """Weights that are here, to members that fetch them: what is served, was published or was fetched before."""
        node = self._node
        await self._give_held()
        await node.publications.restore()
        for folder in PeerFolder.every(node.options.home.cache):
            kept = kept_model(folder)
            if kept is not None:
                await node.shelf.offer(kept, "kept")

    async def say_coming(self, span: Span | None, *, settled: bool = False) -> None:
        """Announce what this node is about to hold; None takes it back."""
        loader = self.loader
        assert loader is not None
        name, layers = loader.model.manifest.name, loader.model.manifest.layers
        said = () if span is None else (Coming(loader.model.model_id, name, layers, span, loader.dtype, settled),)
        if said != self.coming:
            self.coming = said
            await self._node.loops.announce()

    async def move_to(self, placement: Placement) -> None:
        """Hold other layers instead of those that are held, or of none.

        raises: ShoalError when that cannot be; what was held is held then
        """
        loader, held = self.loader, self.held
        assert loader is not None
        began_s = anyio.current_time()
        self.move = Move(None if held is None else held.span, placement)
        self._report(self._moving(loader, held, placement))
        try:
            await self.say_coming(placement.span, settled=True)
            await self._fetch(loader, placement.span)
            if held is None:
                self.move.stage = "loading"
                self._take(await self._on_thread(partial(loader.load, placement.span, self._tell)))
            elif await self._on_thread(partial(loader.fits_beside, held.span, placement.span)):
                await self._beside(loader, held, placement)
            else:
                del held  # the last to refer to the layers that are let go
                await self._in_place(loader, placement)
            drained = self.move.drained or Drained(0)
        finally:
            self.move = None
            self.coming = ()
        self.moves += 1
        self._node.metrics.moves.labels(loader.model.manifest.name).inc()
        await self._node.loops.announce()
        name, layers = loader.model.manifest.name, describe(placement.span, loader.model.manifest.layers)
        seconds = anyio.current_time() - began_s
        self._report(LayersMoved(name, layers, seconds, drained.moved, drained.sessions - drained.moved))
        await self._give_held()

    async def _fetch(self, loader: Loader, span: Span) -> None:
        """While the old layers serve. raises: as `Loader.fetch`; Unavailable also when nobody has the weights now"""
        self._fetching = anyio.CancelScope()
        self._lacking = ""
        try:
            with self._fetching:
                await self._on_thread(partial(loader.fetch, span, self._tell))
        finally:
            self._fetching = None
        if self._lacking:
            raise Unavailable(f"no member that is there has the weights: {self._lacking}")

    async def _beside(self, loader: Loader, held: HostedModel, placement: Placement) -> None:
        assert self.move is not None
        self.move.stage = "loading"
        fresh = await self._on_thread(partial(loader.load, placement.span, self._tell))
        self._take(fresh)  # sessions that open from now on are its
        self.coming = ()
        await self._let_go(held)

    async def _in_place(self, loader: Loader, placement: Placement) -> None:
        held = self.held
        assert held is not None
        assert self.move is not None
        before = held.span
        await self._let_go(held)
        del held
        self.move.stage = "loading"
        await self._on_thread(free_weights)
        failure: Exception | None = None
        try:
            self._take(await self._on_thread(partial(loader.load, placement.span, self._tell)))
        except Exception as error:
            log.warning("layers_not_loaded", exc_info=True)
            failure = error.with_traceback(None)  # it would keep alive what was loaded so far
            failure.__cause__ = failure.__context__ = None
        if failure is not None:
            await self._on_thread(free_weights)
            self._take(await self._on_thread(partial(loader.load, before, self._tell)))
            raise failure

    async def _let_go(self, held: HostedModel) -> None:
        """Sessions of these layers go to successors; what has found none after a while ends."""
        assert self.move is not None
        self.move.stage = "handing over"
        move, node, engine = self.move, self._node, held.engine

        def told(drained: Drained) -> None:
            move.drained = drained
            log.info("drain", **asdict(drained))

        self._older.append(engine)
        node.hosted.part_with(held)
        await node.loops.announce()
        await anyio.sleep(GRACE_S)
        node.hosted.parted(held.model)
        await node.hops.drain(DRAIN_S, told, of=engine)
        node.hops.end(engine)
        await anyio.to_thread.run_sync(engine.stop)
        self._older.remove(engine)

    def _take(self, fresh: HostedModel) -> None:
        node = self._node
        node.device = fresh.device
        node.planner.know(fresh.model, fresh.manifest, fresh.texts)
        fresh.engine.keeps_lanes = node.books is not None and node.setup.swarm.public
        node.hosted.add(fresh)

    async def _give_held(self) -> None:
        held = self.held
        if held is not None and held.local is not None:
            await self._node.shelf.offer(held.local, "hosted")

    async def _on_thread(self, work: Callable[[], T]) -> T:
        """Left behind when the node stops meanwhile."""
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)

    def _tell(self, event: NodeEvent) -> None:
        """Events belong to the loop, and come from the loading thread as well as from what it asks of the loop."""
        if threading.get_ident() == self._loop_thread:
            if isinstance(event, WeightsMissing) and self._fetching is not None:
                self._lacking = event.reason  # another node may have them; at a start one waits
                self._fetching.cancel()
            else:
                self._report(event)
        else:
            anyio.from_thread.run_sync(self._report, event)

    @staticmethod
    def _moving(loader: Loader, held: HostedModel | None, placement: Placement) -> LayersMoving:
        manifest = loader.model.manifest
        before = "nothing" if held is None else held.layers_text
        return LayersMoving(manifest.name, before, describe(placement.span, manifest.layers), placement.reason)

    def stop(self) -> None:
        """End every engine; sessions that are open fail."""
        if self.loader is not None:
            self.loader.stopped = True
        for engine in (*self._older, *(hosted.engine for hosted in self._node.hosted)):
            engine.stop()
