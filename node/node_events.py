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


NodeEvent = Identified | SwarmFound | NetworkUp | LayersChosen | LoadProgress | Ready | Warned | Leaving
