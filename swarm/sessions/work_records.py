"""The seams to whoever audits: what a hop did is kept for it, and a driver says whom it has used.

Owned by hop and driver, filled in by the node.
"""

from dataclasses import dataclass
from typing import Protocol

from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.manifest import Manifest
from shoal.swarm.units import Span

from .compute import Done
from .generation import TokenRequest
from .messages import Feed, Open


class WorkRecord(Protocol):
    """Of one session at one hop. Nothing here waits or raises."""

    def worked(self, fed: Feed, done: Done) -> None:
        """Positions that were computed, in order. done: with its residual"""

    def ended(self) -> None:
        """The session is over; no more positions come."""

    def gave_up(self) -> None:
        """Positions came from elsewhere: what was not computed here cannot be shown, nor what depends on it."""


class WorkRecords(Protocol):
    def begin(self, request: Open, driver: PeerId) -> WorkRecord | None:
        """None: this session's work is not kept."""


@dataclass(frozen=True, slots=True)
class UsedHop:
    """One hop of a session that is over. session: the hop's own name for it

    positions: that it has computed for certain from the first on, as a token shows that came through it; 0 for a hop
        that began with a cache of another's, which signs for nothing
    since: 0 for a hop of the first chain, else the session's length when it was opened in place of another
    stayed: whether it was part of the chain at the end
    """

    peer: PeerId
    session: SessionId
    span: Span
    positions: int
    since: int
    stayed: bool


@dataclass(frozen=True, slots=True)
class UsedSession:
    """ids: prompt and answer; hops: in the order in which they were let go"""

    request: TokenRequest
    manifest: Manifest
    dtype: str
    ids: tuple[int, ...]
    hops: tuple[UsedHop, ...]


class SessionAudits(Protocol):
    def ended(self, session: UsedSession) -> None:
        """A session of this driver is over. Neither waits nor raises."""
