"""What a starting and running node tells whoever shows it: the start screen, `--json`, the log."""

from dataclasses import dataclass

from shoal.swarm.identifiers import PeerId


@dataclass(frozen=True, slots=True)
class Identified:
    name: str
    peer: PeerId


@dataclass(frozen=True, slots=True)
class SwarmFound:
    swarm: str
    public: bool
    owner: bool  # this node owns it
    founded: bool  # just now


@dataclass(frozen=True, slots=True)
class NetworkUp:
    addresses: tuple[str, ...]
    verdict: str  # one line
    peers: int


@dataclass(frozen=True, slots=True)
class LayersChosen:
    model: str
    layers: str
    reason: str
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class LoadProgress:
    what: str  # "layers", or the file that is fetched
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class DonorDropped:
    """A peer that gave weights is not asked any more."""

    peer: PeerId
    reason: str
    fault: bool  # it sent what no honest peer sends


@dataclass(frozen=True, slots=True)
class WeightsMissing:
    """Nobody who has the rest of a model is there now; the node waits for somebody."""

    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class WeightsFetched:
    """What a model's weights took to come from peers."""

    model: str
    fetched_bytes: int
    kept_bytes: int  # were here before
    givers: dict[PeerId, int]  # bytes from each
    seconds: float


@dataclass(frozen=True, slots=True)
class LayersMoving:
    """A running node exchanges its layers for others."""

    model: str
    before: str  # "embed+0:4"
    layers: str
    reason: str


@dataclass(frozen=True, slots=True)
class LayersMoved:
    """It serves the other layers now. moved: sessions that went on at successors; ended: those that did not"""

    model: str
    layers: str
    seconds: float
    moved: int
    ended: int


@dataclass(frozen=True, slots=True)
class Ready:
    api: str
    invite: str | None  # the line to copy, at the owner of a private swarm
    seconds: float  # since the start
    invite_expires_at: float | None = None  # unix seconds


@dataclass(frozen=True, slots=True)
class Warned:
    text: str


@dataclass(frozen=True, slots=True)
class Leaving:
    reason: str


NodeEvent = (
    Identified
    | SwarmFound
    | NetworkUp
    | LayersChosen
    | LoadProgress
    | DonorDropped
    | WeightsMissing
    | WeightsFetched
    | LayersMoving
    | LayersMoved
    | Ready
    | Warned
    | Leaving
)
