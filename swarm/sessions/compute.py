"""The seam between a hop of a session and the machine that computes it.

Activations cross it as bytes (`compression.activations`), so a hop needs no tensor library: the engine of a node
(`node/engine.py`) turns them into tensors on its own thread, and the simulator computes with integers. So does a
session's KV cache, as chunks (`kv_chunks`) that another node of the same layers can take in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.compression.kv_levels import KvLevel
from shoal.swarm.identifiers import SessionId
from shoal.swarm.kv.kv_chunks import KvFormat
from shoal.swarm.sampling import Sampling
from shoal.swarm.units import Span

from .lanes import MEMBER, Claim


@dataclass(frozen=True, slots=True)
class Work:
    """`count` new positions of one session, starting at `start`. Exactly one of `ids` and `hidden` is given."""

    session: SessionId
    start: int  # must equal the positions that the engine holds for this session
    count: int
    ids: tuple[int, ...] = ()  # when the session's span begins with embed
    hidden: bytes = b""  # an activation of shape (count, hidden)
    wants_token: bool = False  # sample after the last position; says nothing to a span without head
    wants_residual: bool = False  # for audits, of a span with layers and head


@dataclass(frozen=True, slots=True)
class Choice:
    """One sampled token."""

    id: int
    logprob: float  # natural log; 0.0 when not asked for
    top: tuple[tuple[int, float], ...] = ()  # alternatives, most likely first


@dataclass(frozen=True, slots=True)
class Done:
    hidden: bytes  # activation (count, hidden) when the span does not end with head, else b""
    choice: Choice | None  # when wants_token and the span ends with head
    queue_s: float  # waited in the node's queue
    compute_s: float  # on the device, the batch's time
    residual: bytes = b""  # activation (count, hidden) behind the last layer, when it was wanted and is not `hidden`


class Compute(Protocol):
    async def open(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        claim: Claim = MEMBER,
    ) -> None:
        """Reserve KV for `max_tokens` positions of `span`, which must lie inside the hosted one.

        history: the ids so far, needed by the head when the sampling has penalties
        claim: on whose account, which decides whose turn it is where many wait
        raises: OutOfMemory, ContextTooLong, Refused
        """

    async def run(self, work: Work) -> Done:
        """Queue the work; it joins the next batch that has room. Cancelling the caller cancels queued work.

        raises: BadActivation (shape, dtype, NaN or infinity: the upstream peer's fault), LocalFault (ours),
                Refused (unknown session, or `start` does not continue it)
        """

    async def stand_by(self, session: SessionId, span: Span, max_tokens: int) -> None:
        """Make room for a cache that `import_kv` fills and that `take_over` may one day make a session of.

        It is there only as long as no session needs the room: what it holds may be gone at any moment.
        raises: OutOfMemory (nothing is free), ContextTooLong, Refused
        """

    async def take_over(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        below: int,
        claim: Claim = MEMBER,
    ) -> int:
        """As `open`, of what stood by, beginning with the positions that it holds below `below`. returns: how many

        raises: Refused (also when it is gone, or was made for another span or fewer tokens), OutOfMemory; then what
                stood by is as it was
        """

    def kv_format(self, span: Span) -> KvFormat:
        """What the caches of sessions over `span` are, for whoever is to take them in."""

    async def prepare_kv(self, span: Span) -> None:
        """Do what takes long the first time that caches of `span` are coded, so that no session waits for it.

        raises: Refused, LocalFault
        """

    async def export_kv(
        self, session: SessionId, start: int, stop: int, level: KvLevel = "lossless", span: Span | None = None
    ) -> list[bytes]:
        """Positions [start, stop) of a session that goes on meanwhile, as chunks cut at multiples of CHUNK_TOKENS.

        span: of these units only, which lie inside the session's

        Other sessions wait for no more than the copy of one chunk. All chunks stay in memory: ask for one at a time.

        raises: Refused (unknown session, positions or units not held, a level that wants a profile where there is
                none, caches that cannot be moved), LocalFault
        """

    async def import_kv(
        self, session: SessionId, start: int, chunks: Sequence[bytes], history: tuple[int, ...] = ()
    ) -> int:
        """Take in chunks of consecutive positions, from `start` on: as many as the session holds so far. Of a first
        chunk that begins before that, only the rest is taken.

        history: the ids so far, when the sampling has penalties; they take the place of those told to `open`
        returns: positions held then
        raises: BadChunk (damaged; of another model, dtype, layers or profile; out of order); the chunks before it stay.
                Refused (unknown session, `start` does not continue it, more than is reserved), LocalFault
        """

    async def place_kv(self, session: SessionId, chunk: bytes) -> None:
        """Decode a chunk of positions that the session does not hold yet and put them where they belong, while it goes
        on: a later `import_kv` of the same object then has nothing left to do. Until then they do not count.

        raises: BadChunk, Refused (unknown session, beyond what is reserved), LocalFault
        """

    def close(self, session: SessionId) -> None:
        """Free everything of the session; unknown sessions are ignored."""


class ChunkCoder(Protocol):
    """What an engine does with chunks of no session."""

    async def recode_kv(self, chunk: bytes, level: KvLevel) -> bytes:
        """A lossless chunk of this node's caches at another level. raises: BadChunk, Refused, LocalFault"""

    async def kv_distance(self, mine: bytes, other: bytes, level: KvLevel) -> float:
        """How far another chunk of the same positions is from `mine`, a lossless one, beyond what `level` may lose.

        lossless: |other - mine| / |mine| over keys and values, the larger of the two. The other levels: what rounding
        to their step cannot explain (`compression.kv_comparison`); 0 for an honest chunk, about 1 for an empty one.

        raises: BadChunk when the other one is damaged or of other caches; Refused without a profile; LocalFault
        """
