"""A volunteer's node: everything put together, in the order in which a start needs it.

`run_node` starts the daemon and the imports of the tensor library side by side, enters the swarm, loads the layers that
are needed, and serves until it is told to stop. Whatever goes wrong, the daemon is stopped and the lock is given back.
"""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup
from msgspec.structs import replace

import shoal
from shoal.swarm.beacon_calls import serve_root
from shoal.swarm.errors import DaemonDied, Refused, ShoalError, SwarmUnreachable, UsageError
from shoal.swarm.home import Home, NodeFacts
from shoal.swarm.identifiers import PROTOCOL_VERSION, PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.kv.cache_keeper import CacheKeeper
from shoal.swarm.kv.cache_streams import CacheReceiver
from shoal.swarm.members.invite import read_invite
from shoal.swarm.members.invite_store import InviteStore
from shoal.swarm.members.joining import connect_any, serve_joining
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.members.swarm_entry import Entered
from shoal.swarm.node_lock import NodeLock
from shoal.swarm.prefixes.prefixes import Prefixes
from shoal.swarm.record_calls import serve_records
from shoal.swarm.records import NodeRecord, RecordReader
from shoal.swarm.routing.chain_planner import DirectoryPlanner
from shoal.swarm.routing.latency import LatencyBook
from shoal.swarm.routing.pings import Pinger, serve_pings
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.hop_server import Drained, HopServer
from shoal.swarm.transfer.blobs import serve_blobs
from shoal.swarm.transports.libp2p import Libp2pTransport

from .api.gateway_metrics import GatewayMetrics
from .api_server import ApiServer
from .auditing import Auditing
from .books import Books, open_books, start_gossip
from .fetching import Fetching
from .hosted_models import HostedModels
from .hosting import Hosting
from .kv_control import NodeKv
from .leaving import AT_ONCE, Leave
from .local_parts import NodeLocalParts
from .model_finding import Finder
from .model_loading import warm_imports
from .node_control import LiveControl
from .node_events import Identified, Leaving, NetworkUp, NodeEvent, Ready, SwarmFound, Warned
from .node_loops import NodeLoops
from .options import NodeOptions
from .prefix_board import DhtBoard, chunk_store, trusted
from .publications import Publications
from .rebalancing import Rebalancing
from .swarm_setup import check_layers, enter_swarm
from .trainings import Trainings
from .weight_shelf import WeightShelf

if TYPE_CHECKING:
    from shoal.swarm.transports.dht_directory import DhtDirectory

log = structlog.get_logger(__name__)
LAST_LOOK_S = 0.3
Report = Callable[[NodeEvent], None]


@dataclass(slots=True)
class Node:
    """The parts of a running node, for the loops, the control surface and tests."""

    options: NodeOptions
    identity: Identity
    transport: Libp2pTransport
    setup: Entered
    calls: MemberCalls
    directory: "DhtDirectory"
    pinger: Pinger
    hosted: HostedModels
    driver: Driver
    planner: DirectoryPlanner
    prefixes: Prefixes
    hops: HopServer
    invites: InviteStore | None  # at the owner
    shelf: WeightShelf
    publications: Publications
    trainings: Trainings
    books: Books | None  # None: it keeps no ledger
    auditing: Auditing | None  # with a ledger
    started_at: float  # unix seconds
    earlier_starts: frozenset[float]  # of this home: their records may outlive them
    device: str = "none"
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)
    runs: set[str] = field(default_factory=set)  # keys of the trainings that it takes part in
    loops: NodeLoops = field(init=False)
    hosting: Hosting = field(init=False)
    rebalancing: Rebalancing = field(init=False)
    stop: anyio.Event = field(default_factory=anyio.Event)
    stop_reason: str = "asked to stop"
    leave: Leave | None = None  # as it was asked to stop
    drained: Drained | None = None  # how far it is, once it leaves

    @property
    def full_addresses(self) -> tuple[str, ...]:
        return tuple(f"{address}/p2p/{self.transport.me}" for address in self.transport.addresses)

    def record(self) -> NodeRecord:
        """What this node says about itself now; the directory sets the expiry."""
        return NodeRecord(
            peer=self.transport.me,
            swarm=self.setup.swarm.id,
            name=self.options.name,
            version=shoal.__version__,
            protocol=PROTOCOL_VERSION,
            addresses=self.transport.addresses,
            hosted=self.hosted.records(),
            coming=self.hosting.coming,
            rtt_ms=self.pinger.book.nearest(self.pinger.book.rtt_ms()),
            started_at=self.started_at,
            expires_at=0.0,
            certificate=self.setup.gate.certificate,
            link_byte_s=float(round(self.hops.link.byte_s)),
            runs=tuple(sorted(self.runs)),
        )

    def known(self) -> list[NodeRecord]:
        """Who is there now."""
        return self.directory.book.live(_now())

    def members(self) -> list[PeerId]:
        """The others."""
        return [record.peer for record in self.known() if record.peer != self.transport.me]

    def finder(self, tell: Report | None = None) -> Finder:
        cache, public = self.options.home.cache, self.setup.swarm.public
        return Finder(self.calls, self.members, self.transport.me, cache, public, tell)

    def ask_to_stop(self, reason: str, leave: Leave | None = None) -> None:
        """leave: what is done for its sessions first; None: what a signal does"""
        self.stop_reason = reason
        self.leave = leave or Leave(self.options.drain_limit_s)
        self.stop.set()

    async def drain(self) -> None:
        """Withdraw from the directory and have the sessions that run here go on elsewhere."""
        self.rebalancing.stop()
        leave = self.leave
        if leave is None or not leave.limit_s or not self.hops.sessions():
            return
        await self.loops.leave()
        log.info("drain_begins", sessions=len(self.hops.sessions()), limit_s=leave.limit_s)
        self.drained = await self.hops.drain(leave.limit_s, self._note_drained, waits=leave.waits)
        if leave.waits:
            await anyio.sleep(LAST_LOOK_S)  # `shoal down --drain` asks how it ended

    def _note_drained(self, drained: Drained) -> None:
        self.drained = drained
        log.info("drain", **asdict(drained))


@asynccontextmanager
async def running_node(options: NodeOptions, report: Report, tasks: TaskGroup) -> AsyncIterator[Node]:
    """A node that serves until the context is left; then it withdraws, ends its API and stops its daemon.

    raises: ShoalError with the line to show and the exit code
    """
    began_s = anyio.current_time()
    invite = read_invite(options.invite, _now()) if options.invite else None
    options.home.prepare()
    identity = Identity.load_or_create(options.home.identity)
    async with AsyncExitStack() as stack:
        stack.enter_context(NodeLock(options.home.lock, options.name))
        stack.callback(options.home.forget_facts, os.getpid())
        report(Identified(options.name, identity.peer_id))
        await check_layers(options)
        if options.model is not None:
            tasks.start_soon(_in_background, warm_imports)  # takes seconds; the network comes up meanwhile
        transport = await Libp2pTransport.start(identity.libp2p_key(), options.network)
        closing = await stack.enter_async_context(AsyncExitStack())  # after the transport: what ends with it is settled
        stack.push_async_callback(transport.stop)
        setup, founded = await enter_swarm(options, identity, transport, invite, _now)
        owner = setup.swarm.owner == identity.peer_id
        report(SwarmFound(setup.swarm.name, setup.swarm.public, owner, founded))
        books = await _books(options, identity, setup.swarm.owner, closing, report)
        reached = await _reach(transport, setup, owner, report)
        node = await _assemble(options, identity, transport, setup, tasks, stack, report, books)
        report(NetworkUp(node.full_addresses, _verdict(options, node, reached), reached))
        records = await node.loops.look()
        if node.stop.is_set():
            raise Refused(node.stop_reason)
        await _gossip(node, tasks, stack, report)
        stack.callback(node.hosting.stop)
        await node.hosting.start(records)
        api_key = options.home.api_key()
        control = LiveControl(node)
        server = ApiServer(
            node.driver,
            control,
            api_key,
            options.api_host,
            options.api_port,
            node.publications,
            node.trainings,
            Fetching(node),
            NodeKv(node),
            node.metrics,
        )
        api = await stack.enter_async_context(server.running(tasks))
        facts = NodeFacts(os.getpid(), options.name, api, node.full_addresses, node.started_at)
        options.home.write_facts(facts)
        stack.callback(_tell_that_it_stops, options.home, facts)
        await node.loops.announce()
        stack.push_async_callback(node.loops.withdraw)
        tasks.start_soon(node.loops.run)
        tasks.start_soon(node.hosting.give)
        tasks.start_soon(node.rebalancing.run)
        if options.follow is not None:
            from .run_following import follow_run  # torch

            tasks.start_soon(follow_run, node, options.follow, report)
        line, until = None, None
        if node.invites is not None:
            line = node.invites.standing(node.full_addresses, _now())
            until = read_invite(line, _now()).expires_at
        report(Ready(api, line, anyio.current_time() - began_s, until))
        try:
            yield node
        finally:
            report(Leaving(node.stop_reason))


def _tell_that_it_stops(home: Home, facts: NodeFacts) -> None:
    """The commands beside a node that takes its time over stopping shall not call it starting."""
    try:
        home.write_facts(replace(facts, api=""))
    except ShoalError:
        home.forget_facts(facts.pid)  # a full disk: then they know less


async def _books(
    options: NodeOptions, identity: Identity, owner: PeerId, stack: AsyncExitStack, report: Report
) -> Books | None:
    if not options.ledger:
        return None
    books, warning = await open_books(options.home, identity, owner)
    if warning is not None:
        report(warning)
    if books is not None:
        stack.push_async_callback(books.ledger.close)
    return books


async def _gossip(node: Node, tasks: TaskGroup, stack: AsyncExitStack, report: Report) -> None:
    """Once the directory knows who lives: they are asked for this node's own entries before it signs any."""
    if node.books is None:
        return

    def members() -> set[PeerId]:
        return {node.transport.me, *(record.peer for record in node.directory.book.live(_now()))}

    books, home, swarm = node.books, node.options.home, node.setup.swarm.id
    try:
        await start_gossip(books, home, swarm, node.transport, node.calls, members, tasks, stack)
    except UsageError as error:
        report(Warned(f"{error}; this node signs no receipts until it is started again"))


async def _reach(transport: Libp2pTransport, setup: Entered, owner: bool, report: Report) -> int:
    """Connect to the peers known from before. returns: how many answered. raises: SwarmUnreachable"""
    others = [a for a in setup.membership.bootstrap if not a.endswith(f"/p2p/{transport.me}")]
    if not others:
        return 0
    try:
        return len(await connect_any(transport, others))
    except SwarmUnreachable as error:
        if not owner:
            raise
        report(Warned(f"{error}; this node owns the swarm and starts it alone"))
        return 0


async def _assemble(
    options: NodeOptions,
    identity: Identity,
    transport: Libp2pTransport,
    setup: Entered,
    tasks: TaskGroup,
    stack: AsyncExitStack,
    report: Report,
    books: Books | None,
) -> Node:
    """Everything but the model and the API, answering calls already."""
    from shoal.swarm.transports.dht_directory import DhtDirectory

    reader = RecordReader(setup.swarm, setup.revocations)
    bootstrap = setup.membership.bootstrap
    owner = setup.swarm.owner == identity.peer_id
    try:
        directory = await DhtDirectory.start(transport.hivemind_p2p, identity, reader, bootstrap)
    except SwarmUnreachable:
        if not owner:
            raise
        directory = await DhtDirectory.start(transport.hivemind_p2p, identity, reader)
    stack.push_async_callback(directory.stop)
    calls = MemberCalls(transport, setup.gate)
    pinger = Pinger(transport, calls, LatencyBook(), anyio.current_time)
    planner = DirectoryPlanner(directory, calls, pinger, anyio.current_time, _now)
    hosted = HostedModels()
    local_parts = NodeLocalParts(options, hosted)
    stack.callback(local_parts.stop)
    paying = books.paying() if books else None
    metering = books.metering(hosted.manifest) if books else None
    accounts = books.accounts(metering, setup.swarm) if books and metering else None
    stamping = books.stamping(setup.swarm) if books else None
    board = DhtBoard(directory, pinger, lambda: setup.gate.certificate, _now)
    trusts = trusted(lambda: planner.standing, setup.swarm)
    store = chunk_store(options, lambda text: report(Warned(text)))
    prefixes = Prefixes(store, transport, setup.gate, board, hosted.coder, trusts)
    reusing = prefixes if options.follow is None else None  # of weights that move, KV grows false
    receiver = CacheReceiver(transport, setup.gate, CacheKeeper(options.standby_bytes))
    driver = Driver(
        transport,
        setup.gate,
        planner,
        tasks,
        local_parts=local_parts,
        paying=paying,
        stamping=stamping,
        receiver=receiver,
    )
    auditing = _auditing(options, identity, transport, setup, books, hosted, directory) if books else None
    driver.audits = auditing.sessions if auditing else None
    records = auditing.records if auditing else None
    hops = HopServer(
        transport,
        setup.gate,
        hosted,
        metering=metering,
        accounts=accounts,
        records=records,
        receiver=receiver,
        prefixes=reusing,
    )
    if books is not None and auditing is not None:
        tasks.start_soon(books.ledger.run)
        await serve_root(calls, books.roots)
        await auditing.start(tasks)
        stack.push_async_callback(auditing.stop)
    invites = InviteStore(options.home.invites, identity, setup.swarm) if owner else None
    if invites is not None:
        stack.callback(invites.close)
        setup.revocations.merge(invites.revocations())
        await serve_joining(transport, lambda peer, body: invites.answer(peer, body, _now()))
    started_at = _now()
    shelf = WeightShelf(options.upload_byte_s)
    node = Node(
        options=options,
        identity=identity,
        transport=transport,
        setup=setup,
        calls=calls,
        directory=directory,
        pinger=pinger,
        hosted=hosted,
        driver=driver,
        planner=planner,
        prefixes=prefixes,
        hops=hops,
        invites=invites,
        shelf=shelf,
        publications=Publications(options.home, shelf),
        trainings=Trainings(tasks),
        books=books,
        auditing=auditing,
        started_at=started_at,
        earlier_starts=options.home.note_start(started_at),
    )
    node.loops = NodeLoops(node, report)
    node.hosting = Hosting(node, report)
    node.rebalancing = Rebalancing(node, node.hosting, report)
    node.trainings.node = node
    await hops.start()
    await prefixes.serve()
    tasks.start_soon(prefixes.run)
    await serve_pings(calls)
    await serve_records(calls, directory, _now)
    await serve_blobs(calls, lambda model: shelf.blobs(model) or hosted.blobs(model))
    await shelf.serve(calls)
    return node


def _auditing(
    options: NodeOptions,
    identity: Identity,
    transport: Libp2pTransport,
    setup: Entered,
    books: Books,
    hosted: HostedModels,
    directory: "DhtDirectory",
) -> Auditing:
    def nodes() -> list[NodeRecord]:
        return directory.book.live(_now())

    return Auditing(options.home, identity, transport, setup.gate, books.ledger, hosted, nodes, anyio.current_time)


def _verdict(options: NodeOptions, node: Node, reached: int) -> str:
    """One line on how others reach this node."""
    if options.network.loopback:
        return "this machine only (loopback)"
    if node.directory.reachable:
        return f"reachable: a peer could dial this node; {reached} peers answered"
    if node.directory.reachable is False:
        return "behind a NAT or firewall: peers reach this node through relays, more slowly"
    return "not known yet: nobody has dialled this node so far"


async def _in_background(work: Callable[[], None]) -> None:
    """On a thread that is left behind when the node is told to stop meanwhile."""
    await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


def _now() -> float:
    return time.time()  # noqa: TID251  the shell's clock, passed on to the cores


async def _watch_daemon(node: Node) -> None:
    await node.transport.died()
    node.ask_to_stop("the libp2p daemon died", AT_ONCE)


async def run_node(options: NodeOptions, report: Report, on_running: Callable[[Node], None] | None = None) -> None:
    """Serve until somebody asks the node to stop. raises: ShoalError"""
    error: ShoalError | None = None
    async with anyio.create_task_group() as tasks:
        try:
            async with running_node(options, report, tasks) as node:
                if on_running is not None:
                    on_running(node)
                tasks.start_soon(_watch_daemon, node)
                await node.stop.wait()
                if not node.transport.is_dead:
                    await node.drain()
                if node.transport.is_dead:
                    raise DaemonDied("the node's own libp2p daemon died; start the node again")
        except ShoalError as caught:
            error = caught
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
