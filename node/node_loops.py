"""What a node does beside serving: announces itself, watches the swarm, measures its neighbours."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import structlog

from shoal.swarm.errors import OutOfMemory, ShoalError, Unavailable, UsageError
from shoal.swarm.members import joining, membership_file
from shoal.swarm.members.membership import CERTIFICATE_TTL_S, read_certificate
from shoal.swarm.members.membership_file import Membership
from shoal.swarm.node_lock import clash, refuse_clash
from shoal.swarm.records import ANNOUNCE_PERIOD_S, NodeRecord

from .leaving import AT_ONCE
from .node_events import NodeEvent, Warned

if TYPE_CHECKING:
    from .node import Node

log = structlog.get_logger(__name__)
LOOK_PERIOD_S = 5.0
ADDRESS_PERIOD_S = 30.0
JUDGE_PERIOD_S = 300.0  # between two looks at the whole ledger
PING_AT_ONCE = 4
PING_AGAIN_S = 20.0
RENEW_CHECK_S = 3600.0
RENEW_BEFORE_S = CERTIFICATE_TTL_S / 4  # the owner need not be up on any particular day
KNOWN_BOOTSTRAP = 8  # addresses of others remembered for the next start


class NodeLoops:
    def __init__(self, node: "Node", report: Callable[[NodeEvent], None]) -> None:
        self._node = node
        self._directory = node.directory
        self._report = report
        self._saved: Membership | None = None
        self._renewing = anyio.Lock()
        self._leaving = False
        self._revocations = 0  # of the list that was acted on; what the start has learned is acted on at the first look

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._announce_often)
            tasks.start_soon(self._look_often)
            tasks.start_soon(self._refresh_addresses)
            tasks.start_soon(self._renew_in_time)
            tasks.start_soon(self._judge_often)

    async def announce(self) -> None:
        if self._leaving:
            return
        try:
            await self._directory.announce(self._node.record())
        except Unavailable as error:
            log.warning("announce_failed", reason=str(error))

    async def leave(self) -> None:
        """Nobody plans with this node any more; it still answers."""
        self._leaving = True
        await self.withdraw()

    async def withdraw(self) -> None:
        with anyio.move_on_after(3.0, shield=True):
            await self._directory.withdraw()

    async def _announce_often(self) -> None:
        while not self._leaving:
            self._node.hosted.measure_when_idle()
            await self.announce()
            await anyio.sleep(ANNOUNCE_PERIOD_S)

    async def _refresh_addresses(self) -> None:
        while True:
            await anyio.sleep(ADDRESS_PERIOD_S)
            try:
                await self._node.transport.refresh_addresses()
            except (ShoalError, OSError) as error:
                log.warning("addresses_unknown", reason=str(error))

    async def _renew_in_time(self) -> None:
        while True:
            try:
                await self.renew(time.time())  # noqa: TID251
            except ShoalError as error:
                log.warning("certificate_not_renewed", reason=str(error))
            await anyio.sleep(RENEW_CHECK_S)

    async def _judge_often(self) -> None:
        """What routing thinks of others follows from the ledger."""
        books, auditing = self._node.books, self._node.auditing
        while books is not None:
            try:
                self._node.planner.standing = await books.standings(auditing.known.avoided() if auditing else ())
            except ShoalError as error:
                log.warning("standing_unknown", reason=str(error))
            with anyio.move_on_after(JUDGE_PERIOD_S):
                await (auditing.sessions.changed.wait() if auditing else anyio.sleep_forever())
            if auditing is not None:
                auditing.sessions.changed = anyio.Event()

    async def renew(self, now: float) -> None:
        """Ask the owner for a fresh certificate when ours runs out soon. raises: Unavailable, Refused"""
        gate = self._node.setup.gate
        async with self._renewing:
            if not gate.certificate or read_certificate(gate.certificate).expires_at - now > RENEW_BEFORE_S:
                return
            answer = await joining.renew(self._node.transport, self._node.setup.swarm, gate.certificate, now)
            gate.certificate = answer.certificate
            log.info("certificate_renewed")

    async def _look_often(self) -> None:
        while True:
            try:
                await self.look()
            except Unavailable as error:
                log.warning("look_up_failed", reason=str(error))
            await anyio.sleep(LOOK_PERIOD_S)

    async def look(self) -> list[NodeRecord]:
        """See who is there: revocations, a stranger with our identity, neighbours to measure, addresses to remember."""
        nodes = await self._directory.nodes()
        node = self._node
        other = clash(node.record(), nodes, time.time(), node.earlier_starts)  # noqa: TID251
        if other is not None:
            self._report(Warned(str(refuse_clash(other))))
            node.ask_to_stop("another node runs with this identity", AT_ONCE)
        await self._drop_revoked()
        self._remember(nodes)
        peers = {record.peer: record for record in nodes if record.peer != node.transport.me}
        book = node.pinger.book
        stale = book.stalest(peers, PING_AT_ONCE, anyio.current_time(), PING_AGAIN_S)
        await node.pinger.measure([peers[peer] for peer in stale])
        return nodes

    async def spread_revocations(self) -> None:
        """The owner has just revoked somebody: act on it here, and publish the list."""
        await self._drop_revoked()
        await self.announce()

    async def _drop_revoked(self) -> None:
        """Peers that the owner has thrown out since: end what they have open here."""
        revocations = self._node.setup.revocations
        if revocations.version == self._revocations:
            return
        self._revocations = revocations.version
        if self._node.transport.me in revocations.peers:
            self._node.ask_to_stop("the owner of the swarm has revoked this node", AT_ONCE)
        for peer in revocations.peers:
            await self._node.transport.disconnect(peer)
        log.info("revocations_updated", version=revocations.version, peers=len(revocations.peers))

    def _remember(self, nodes: list[NodeRecord]) -> None:
        """Keep the newest addresses and revocations in the home, for the next start."""
        node = self._node
        others = [record for record in nodes if record.peer != node.transport.me]
        addresses = [f"{address}/p2p/{r.peer}" for r in others for address in r.addresses[:2]]
        kept = [address for address in node.setup.membership.bootstrap if address not in addresses]
        membership = Membership(
            node.setup.swarm,
            node.setup.gate.certificate,
            tuple([*addresses, *kept][:KNOWN_BOOTSTRAP]),
            node.setup.revocations.encoded,
        )
        if membership == self._saved:
            return
        try:
            membership_file.save(node.options.home.swarm, membership)
        except (OutOfMemory, UsageError) as error:  # a full disk does not hinder serving; the next look tries again
            log.warning("membership_not_saved", reason=str(error))
            return
        self._saved = membership
