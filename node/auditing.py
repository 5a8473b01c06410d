"""All of a node's audits: it keeps its own work, shows it, computes others' again, and looks at what it has used."""

from collections.abc import Callable, Sequence

from anyio.abc import TaskGroup

from shoal.incentives.ledger import Ledger
from shoal.incentives.work_statement import Served
from shoal.swarm.home import Home
from shoal.swarm.identity import Identity
from shoal.swarm.members.handshake import Gate
from shoal.swarm.records import NodeRecord
from shoal.swarm.transport import Transport

from .audit_memory import AuditMemory
from .audit_records import SessionRecords
from .audit_service import AuditService
from .class_limits import ClassLimits
from .hosted_models import HostedModels
from .session_auditor import SessionAuditor


class Auditing:
    """Of a node with a ledger. records: for its hops; sessions: for its driver. clock: monotonic seconds"""

    def __init__(
        self,
        home: Home,
        identity: Identity,
        transport: Transport,
        gate: Gate,
        ledger: Ledger,
        hosted: HostedModels,
        nodes: Callable[[], Sequence[NodeRecord]],
        clock: Callable[[], float],
    ) -> None:
        self.known = AuditMemory(home.audits)
        self.records = SessionRecords(identity, hosted.manifest, clock)
        limits = ClassLimits(hosted, self.records, self.known)
        self.service = AuditService(transport, gate, identity, self.records, limits, self.known.case)
        self._hosted = hosted
        self.sessions = SessionAuditor(
            transport, gate, ledger, self.known, nodes, here=self.service.report, holds=self._holds, clock=clock
        )

    def _holds(self, served: Served) -> str | None:
        model = served.model.hex()
        mine = [h for h in self._hosted if h.model == model and h.dtype == served.dtype]
        return next((h.device for h in mine if h.span.covers(served.span)), None)

    async def start(self, tasks: TaskGroup) -> None:
        await self.service.start()
        await tasks.start(self.sessions.run)

    async def stop(self) -> None:
        """Before the ledger is closed."""
        await self.sessions.stop()
        self.known.close()
