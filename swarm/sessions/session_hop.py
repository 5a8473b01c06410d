"""What a session's machine knows of each hop of its chain, and how patient it is with them."""

from dataclasses import dataclass

from shoal.swarm.identifiers import PeerId
from shoal.swarm.units import Span

from .session_events import HopKey


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. A hop that is silent is probed; one that does not answer a probe is lost; one that answers and makes no
    progress is lost later."""

    open_s: float = 15.0
    probe_after_s: float = 1.0  # of silence, or 4 times the usual step, whichever is longer
    probe_s: float = 2.0
    step_s: float = 30.0  # for one decode step
    prefill_s: float = 120.0  # for one chunk of a prompt or of a replay; for moving a cache
    plan_retry_s: float = 1.0
    plan_tries: int = 4
    failures: int = 8
    standby_retry_s: float = 30.0  # after one was lost, or none was found
    standby_tries: int = 4  # for one hop
    successor_retry_s: float = 2.0
    successor_tries: int = 3  # for one hop that leaves, unless it is hurried
    hurried_s: float = 15.0


@dataclass(slots=True)
class Standby:
    """Where a hop's cache is kept. peer None: at the driver itself"""

    key: HopKey
    peer: PeerId | None
    holding: bool = False  # it has said so, and the hop sends
    held: int = 0  # positions at least, of one at a peer


@dataclass(slots=True)
class Hop:
    key: HopKey
    peer: PeerId
    span: Span
    opened: bool = False
    restoring: bool = False  # its cache is still to come
    most: int = 0  # positions that it may have from there, of a standby that was promoted
    loaded: int = 0  # positions that it began with
    held: int = 0  # at least
    unanswered_since_s: float | None = None  # a probe is out
    standby: Standby | None = None
    seeking: bool = False  # a standby
    standby_tries: int = 0
    standby_after_s: float = 0.0
    leaving: bool = False  # it has asked for a successor
    hurried: bool = False  # and cannot wait until one turns up
    stranded: bool = False  # there is none
