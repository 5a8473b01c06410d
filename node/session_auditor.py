"""Audits of the sessions that a driver of this process has used, and of what others found: behind their backs.

One at a time, from a short queue; when it is full a session goes unlooked at. Whatever fails here fails nothing else.
What was found becomes a VERDICT in the own chain, with a case that anybody may ask for. A false one of somebody else
is looked at again by whoever can: the swarm's owner, whose verdict then moves credit, and holders of the class.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskStatus

from shoal.incentives import audit_case, work_statement
from shoal.incentives.audit_case import FALSE, OF_SESSION, SOUND, AuditCase
from shoal.incentives.audit_threshold import Finding
from shoal.incentives.bodies import Verdict
from shoal.incentives.entry import peer_of
from shoal.incentives.ledger import Ledger
from shoal.incentives.store import Store
from shoal.incentives.work_chunks import most_audited
from shoal.incentives.work_statement import Served
from shoal.swarm import peer_id
from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.handshake import Gate
from shoal.swarm.records import NodeRecord
from shoal.swarm.sampling import encoded
from shoal.swarm.sessions.work_records import UsedHop, UsedSession
from shoal.swarm.transport import Transport
from shoal.swarm.units import has_embed, has_head

from .audit_calls import AskCase, ask
from .audit_driver import AuditDriver, AuditOutcome, Here, Neighbour, ServedSession
from .audit_memory import AuditMemory
from .case_review import reviewed

log = structlog.get_logger(__name__)
MOST_WAITING = 64  # sessions, and verdicts of others
PRAISE_EVERY_S = 3600.0  # a server gets one SOUND verdict in that time from each driver
LOOK_PERIOD_S = 3.0  # for verdicts of others
CASE_S = 60.0
MOST_CASES_HOUR = 6  # of one accuser that are looked at


@dataclass(frozen=True, slots=True)
class _Heard:
    """A verdict of somebody else."""

    author: bytes
    verdict: Verdict


def _monotonic() -> float:
    return time.monotonic()  # noqa: TID251  the shell's clock


class SessionAuditor:
    """`swarm.work_records.SessionAudits`. `run` it, and `stop` before the ledger is closed.

    nodes: who is in the swarm now; here: see `AuditDriver`
    holds: the kind of device on which this process computes a class, None when it does not
    changed: set when standing has to be looked at anew; whoever waits for it puts a fresh one in its place
    """

    def __init__(
        self,
        transport: Transport,
        gate: Gate,
        ledger: Ledger,
        known: AuditMemory,
        nodes: Callable[[], Sequence[NodeRecord]],
        *,
        here: Here | None = None,
        holds: Callable[[Served], str | None] = lambda _: None,
        hears: Callable[[AuditOutcome], None] = lambda _: None,
        clock: Callable[[], float] = _monotonic,
    ) -> None:
        self.known = known
        self.changed = anyio.Event()
        self.audited_sessions = 0
        self.dropped_sessions = 0
        self._transport, self._gate, self._ledger = transport, gate, ledger
        self._nodes, self._holds, self._clock = nodes, holds, clock
        self._driver = AuditDriver(
            transport, gate, self._holders, hears, known, here, self._addresses, self._keeps_ledger
        )
        self._give, self._take = anyio.create_memory_object_stream[UsedSession | _Heard](MOST_WAITING)
        self._praised: dict[bytes, float] = {}
        self._kinds: dict[bytes, str] = {}  # of device, by server
        self._looked_at: dict[bytes, list[float]] = {}
        self._unwritten: list[AuditCase] = []  # false ones, while this node may not sign
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    def ended(self, session: UsedSession) -> None:
        self._queue(session)

    def _queue(self, what: UsedSession | _Heard) -> None:
        try:
            self._give.send_nowait(what)
        except (anyio.WouldBlock, anyio.BrokenResourceError, anyio.ClosedResourceError):
            self.dropped_sessions += 1

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._look_often)
                    await self._work()
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """End what goes on. Nobody is blamed for an audit that was not finished."""
        self._scope.cancel()
        await self._ended.wait()

    async def _work(self) -> None:
        async for what in self._take:
            avoided = self.known.avoided()
            try:
                if isinstance(what, UsedSession):
                    await self._audit(what)
                else:
                    await self._look_again(what)
                await self._write_false()
            except ShoalError as error:
                log.info("audit_not_finished", reason=str(error))
            except Exception as error:  # noqa: BLE001  our own bug in an audit fails no session
                log.warning("audit_failed", reason=f"{type(error).__name__}: {error}")
            if self.known.avoided() != avoided:
                self.changed.set()

    # Own sessions

    async def _audit(self, session: UsedSession) -> None:
        secret = secrets.token_bytes(32)
        try:
            for hop in session.hops:
                if hop.positions and hop.peer != self._transport.me:
                    await self._conclude(self._of(session, hop), secret)
        finally:
            self.audited_sessions += 1

    async def _conclude(self, hop: ServedSession, secret: bytes) -> None:
        was_false = self.known.server(hop.key).convicted
        result = await self._driver.audit(hop, secret)
        if result.case is None:
            return
        if result.is_false:
            self._unwritten.append(result.case)
        elif not was_false and self._clock() - self._praised.get(hop.key, float("-inf")) >= PRAISE_EVERY_S:
            try:
                await self._write(result.case, SOUND)
            except ShoalError as error:  # praise can wait
                log.info("verdict_not_written", reason=str(error))
            else:
                self._praised[hop.key] = self._clock()

    async def _write_false(self) -> None:
        """raises: Unavailable while this node may not sign; what is to be written waits"""
        while self._unwritten:
            await self._write(self._unwritten[0], FALSE)
            self._unwritten.pop(0)

    async def _write(self, case: AuditCase, outcome: int) -> None:
        verdict, data = audit_case.verdict_of(case, outcome), audit_case.encode(case)
        self.known.keep_case(verdict.evidence, data)  # before anybody hears of it and asks
        await self._ledger.append(verdict)
        log.info("verdict", subject=peer_of(verdict.subject), false=outcome == FALSE, chunks=len(case.chunks))
        if outcome == FALSE:
            self.changed.set()

    def _of(self, session: UsedSession, hop: UsedHop) -> ServedSession:
        layers, request = session.manifest.layers, session.request
        after = next((n for n in session.hops if n.stayed and n.positions and n.span.start == hop.span.stop), None)
        head = has_head(hop.span, layers)
        return ServedSession(
            peer=hop.peer,
            key=peer_id.public_key_of(hop.peer),
            session=hop.session,
            served=_served(session, hop),
            positions=hop.positions,
            most_chunks=most_audited(session.manifest.hidden, session.dtype),
            ids=session.ids if head or has_embed(hop.span) else (),
            answers_from=(hop.since + 1 if hop.since else len(request.ids) - 1) if head else None,
            sampling=encoded(request.sampling) if head else None,
            next=self._neighbour(session, hop, after) if after is not None and hop.stayed else None,
        )

    def _neighbour(self, session: UsedSession, hop: UsedHop, after: UsedHop) -> Neighbour | None:
        """What a hop computes again in another's place is dropped by the next one, which holds it already."""
        if after.peer == self._transport.me:
            return None
        since = hop.since + 2 if hop.since else 0
        return Neighbour(after.peer, peer_id.public_key_of(after.peer), after.session, _served(session, after), since)

    def _holders(self, served: Served, server: bytes) -> Sequence[tuple[PeerId, bytes]]:
        """Who computes this class; only within one kind of device are numbers compared."""
        model, audited = served.model.hex(), peer_of(server)
        devices = {
            record.peer: hosted.device
            for record in self._nodes()
            for hosted in record.hosted
            if hosted.model == model and hosted.dtype == served.dtype and hosted.span.covers(served.span)
        }
        here = self._holds(served)
        if here is not None:
            devices[self._transport.me] = here
        kind = devices.get(audited, self._kinds.get(server))
        if kind is not None:
            self._kinds[server] = kind  # it may be gone by the time that it is judged
        return [(peer, peer_id.public_key_of(peer)) for peer, device in devices.items() if device == kind]

    def _addresses(self, peer: PeerId) -> Sequence[str]:
        return next((record.addresses for record in self._nodes() if record.peer == peer), ())

    def _keeps_ledger(self, key: bytes) -> bool:
        return key in self._ledger.store.chains

    # What others found

    async def _look_often(self) -> None:
        seen: int | None = None
        while True:
            try:
                if seen is None:
                    seen = await self._ledger.use(lambda store: store.last())
                await anyio.sleep(LOOK_PERIOD_S)
                several = await self._ledger.use(partial(Store.after, number=seen))
            except ShoalError:  # the ledger is closed, or the disk fails
                await anyio.sleep(LOOK_PERIOD_S)
                continue
            for stored in several:
                seen, body = stored.number, stored.entry.body
                if isinstance(body, Verdict) and body.kind == OF_SESSION and body.outcome == FALSE:
                    self.changed.set()
                    self._hear(_Heard(stored.entry.author, body))

    def _hear(self, heard: _Heard) -> None:
        if self._ledger.key in (heard.author, heard.verdict.subject):
            return
        now = self._clock()
        lately = [at for at in self._looked_at.get(heard.author, []) if now - at < PRAISE_EVERY_S]
        if len(lately) < MOST_CASES_HOUR:
            self._looked_at[heard.author] = [*lately, now]
            self._queue(heard)

    async def _look_again(self, heard: _Heard) -> None:
        """Have it computed again, by others than the accuser; a verdict of one's own is what one has found oneself.

        raises: ShoalError when the case cannot be had
        """
        judge = self._ledger.key in self._ledger.store.judges
        accuser = peer_of(heard.author)
        if self.known.was_reviewed(heard.verdict.evidence):
            return
        data = await ask(
            self._transport, self._gate, accuser, AskCase(heard.verdict.evidence), CASE_S, self._addresses(accuser)
        )
        examined = await anyio.to_thread.run_sync(audit_case.examined, data, heard.verdict)
        if examined.problem:
            log.warning("verdict_not_borne_out", author=accuser, reason=examined.problem)
            self.known.audited(heard.author, Finding.GROSS)
            return
        case = audit_case.decode(data)
        statement, about = work_statement.decode(case.statement), sha256(case.statement).digest()
        if self.known.was_reviewed(about):
            return  # a statement is one client's to complain about, once, with all that it found
        if not judge and self._holds(statement.served) is None:
            self.known.keep_case(heard.verdict.evidence, data)
            return
        review = await reviewed(self._driver, case, statement, accuser, self._ledger.key)
        if review.settled:
            self.known.note_review(heard.verdict.evidence)
            self.known.note_review(about)
        if review.own is not None:
            for finding in review.findings:
                self.known.found(statement.server, finding)
            self._unwritten.append(review.own)
        elif review.refuted:
            log.warning("verdict_false", author=accuser, subject=peer_of(statement.server))
            for key in {heard.author, *examined.auditors}:
                self.known.audited(key, Finding.GROSS)


def _served(session: UsedSession, hop: UsedHop) -> Served:
    return Served(bytes.fromhex(session.request.model), session.dtype, session.dtype, hop.span)
