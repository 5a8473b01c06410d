"""A person with a machine in the simulated economy, and what came of each kind of them."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from shoal.swarm.sessions.lanes import Lane

from .sequential_test import Suspicion
from .simulated_kinds import Kind
from .simulated_server import Server
from .standing import Standings


@dataclass(slots=True)
class Peer:
    """key: the account it uses now; ring: others that it works together with"""

    kind: Kind
    key: bytes
    comes_s: float
    ring: int = -1
    server: Server = field(default_factory=Server)
    cheats: bool = False
    suspicion: Suspicion = field(default_factory=Suspicion)
    served_chunks: int = 0
    banned_until_s: float = 0.0
    view: Standings = field(default_factory=Standings)
    view_s: float = float("-inf")
    owes: dict[bytes, float] = field(default_factory=dict)  # ticks of the earned lane, by account
    owes_s: float = float("-inf")


@dataclass(slots=True)
class Gains:
    """Of one kind. Positions, but for credit."""

    received: Counter[Lane] = field(default_factory=Counter)  # good answers
    spoiled: int = 0  # garbage that it got
    computed: int = 0
    earned: int = 0  # credit, after the burn
    minted: int = 0
    confiscated: int = 0
    stolen: int = 0  # credit that was paid to it for garbage and that it kept long enough to spend
    caught: int = 0
    asked: int = 0
    given_up: int = 0


@dataclass(frozen=True, slots=True)
class Supply:
    """All credit at the end of a day."""

    day: int
    spendable: int
    reserved: int
    vesting: int
    minted: int
    burned: int
    decayed: int


@dataclass(slots=True)
class Waits:
    """Seconds from asking to the first quantum, by lane; and the day on which."""

    seconds: defaultdict[Lane, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
