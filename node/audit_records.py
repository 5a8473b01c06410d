"""What this node did in its last sessions, kept for as long as somebody may ask: chunks, leaves, one statement each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoal.compression import activations
from shoal.compression.errors import MalformedPayload
from shoal.incentives import work_links
from shoal.incentives.audit_evidence import ChunkEvidence, of_chunk
from shoal.incentives.work_chunks import Chunk, ChunkCutter, Given, most_audited
from shoal.incentives.work_links import ChunkLink
from shoal.incentives.work_statement import Served, WorkLeaves, WorkStatement
from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import ModelId, PeerId, SessionId
from shoal.swarm.identity import Identity
from shoal.swarm.manifest import Manifest
from shoal.swarm.sampling import encoded
from shoal.swarm.sessions.compute import Done
from shoal.swarm.sessions.messages import Feed, Open

KEEP_BYTES = 256 << 20  # of all sessions together; the oldest that are over go first
KEEP_S = 600.0  # after the end of a session


@dataclass(slots=True, eq=False)
class SessionWork:
    """`swarm.work_records.WorkRecord`. head: the span ends with it; most_chunks: whose bytes are kept"""

    request: Open
    driver: PeerId
    head: bool
    most_chunks: int
    clock: Callable[[], float]
    chunks: list[Chunk] = field(default_factory=list)
    leaves: WorkLeaves = field(default_factory=WorkLeaves)
    held_bytes: int = 0
    ended_s: float | None = None
    broken: str = ""  # why there is nothing to show
    statement: WorkStatement | None = None
    _cutter: ChunkCutter = field(default_factory=ChunkCutter)

    def worked(self, fed: Feed, done: Done) -> None:
        if self.broken:
            return
        tokens: tuple[int, ...] = ()
        if self.head:
            tokens = (0,) * (fed.count - 1) + ((done.choice.id + 1) if done.choice else 0,)
        made = done.hidden or done.residual or fed.hidden  # the head alone passes on what it was given
        try:
            self._take(self._cutter.add(fed.count, fed.ids, fed.hidden, made, tokens))
        except MalformedPayload as error:
            self.broken = str(error)

    def ended(self) -> None:
        if self.ended_s is None:
            self.ended_s = self.clock()
            try:
                last = self._cutter.finish()
            except MalformedPayload as error:
                last, self.broken = None, str(error)
            self._take([last] if last and not self.broken else [])

    def gave_up(self) -> None:
        self.broken = "it began with a cache that was not computed in it"
        self.chunks.clear()
        self.held_bytes = 0
        self.ended()

    def _take(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self.leaves.add(chunk)
            if len(self.chunks) < self.most_chunks:
                self.chunks.append(chunk)
                self.held_bytes += len(chunk.given.hidden) + 8 * len(chunk.given.ids) + len(chunk.made.hidden)


class SessionRecords:
    """`swarm.work_records.WorkRecords`. manifests: of what is served here; clock: seconds"""

    def __init__(
        self,
        identity: Identity,
        manifests: Callable[[ModelId], Manifest | None],
        clock: Callable[[], float],
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self._identity, self._manifests, self._clock, self._keep_bytes = identity, manifests, clock, keep_bytes
        self._works: dict[SessionId, SessionWork] = {}

    @property
    def held_bytes(self) -> int:
        return sum(work.held_bytes for work in self._works.values())

    def begin(self, request: Open, driver: PeerId) -> SessionWork | None:
        self._forget()
        manifest = self._manifests(request.model)
        if manifest is None or self.held_bytes > self._keep_bytes:
            return None
        most = most_audited(manifest.hidden, request.dtype)
        head = request.span.stop == manifest.layers + 2
        work = self._works[request.session] = SessionWork(request, driver, head, most, self._clock)
        return work

    def inputs(self, model: ModelId, start: int) -> list[tuple[Given, int]]:
        """What came in, lately, at spans that begin with this unit; each with its count of positions."""
        works = [w for w in self._works.values() if (w.request.model, w.request.span.start) == (model, start)]
        return [(chunk.given, chunk.count) for work in works for chunk in work.chunks]

    def statement(self, driver: PeerId, session: SessionId, draw: bytes) -> WorkStatement:
        """Signed once: whoever asks again, with another draw, gets the first one.

        raises: Refused for a session that is open, unknown, forgotten, or another's
        """
        work = self._of(driver, session)
        if work.statement is None:
            request = work.request
            wire = activations.dtype_of(work.chunks[0].made.hidden)
            served = Served(bytes.fromhex(request.model), request.dtype, wire, request.span)
            chosen = encoded(request.sampling) if work.head else b""
            work.statement = work.leaves.statement(self._identity, session.encode(), served, draw, chosen)
        return work.statement

    def evidence(self, driver: PeerId, session: SessionId, index: int) -> ChunkEvidence:
        """raises: Refused, also before the statement"""
        work = self._of(driver, session)
        if work.statement is None or not 0 <= index < len(work.chunks):
            raise Refused("no chunk of a signed statement")
        return of_chunk(work.statement, work.leaves, work.chunks, index)

    def link(self, driver: PeerId, session: SessionId, index: int) -> ChunkLink:
        """raises: Refused, also before the statement"""
        work = self._of(driver, session)
        if work.statement is None or not 0 <= index < len(work.chunks):
            raise Refused("no chunk of a signed statement")
        return work_links.of_chunk(work.leaves, work.chunks[index].count, index)

    def _of(self, driver: PeerId, session: SessionId) -> SessionWork:
        work = self._works.get(session)
        if work is None or work.driver != driver:
            raise Refused("no session of yours of this name is kept here")
        if work.ended_s is None:
            raise Refused("the session is still open")
        if work.broken or not work.chunks:
            raise Refused(f"nothing was kept of this session: {work.broken or 'it was empty'}")
        return work

    def _forget(self) -> None:
        now = self._clock()
        held = self.held_bytes
        for name, work in list(self._works.items()):
            if work.ended_s is not None and (now - work.ended_s > KEEP_S or held > self._keep_bytes):
                held -= work.held_bytes
                del self._works[name]
