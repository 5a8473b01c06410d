"""One simulated volunteer: where it stands, how fast it is, what it hosts, and the record it announces."""

import math
import random
from dataclasses import dataclass, field

import msgspec

from shoal.swarm.identifiers import PROTOCOL_VERSION, ModelId, PeerId, SwarmId
from shoal.swarm.records import ANNOUNCE_PERIOD_S, MAX_NEIGHBOURS, RECORD_TTL_S, Coming, Hosted, NodeRecord
from shoal.swarm.units import Span

from .model import SimulatedModel

SIGNATURE_BYTES = 64 + 8  # with its envelope
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
SWARM = SwarmId("5a" * 32)


@dataclass(frozen=True, slots=True)
class Population:
    """What volunteers bring, drawn per peer."""

    capacity_units: tuple[int, int] = (2, 12)
    unit_ms: tuple[float, float] = (1.0, 10.0)  # a decode step through one unit
    load_s: tuple[float, float] = (5.0, 20.0)  # from the choice of layers to the first announcement
    clock_skew_s: float = 1.0  # at most, either way


@dataclass(slots=True)
class SimulatedPeer:
    peer: PeerId
    place: tuple[float, float]  # in a square whose side is 150 ms wide
    capacity_units: int
    unit_ms: float
    load_s: float
    clock_skew_s: float
    record: NodeRecord | None = None  # the last announced
    announced_at: float = math.inf  # its first record, or the first since it moved
    leaving_since: float = math.inf  # it has withdrawn its record, and serves until it dies
    died_at: float = math.inf
    moves_to: Span | None = None  # which it loads
    relied_on: dict[int, list[PeerId]] = field(default_factory=dict)  # for the units that it leaves, when it went

    @classmethod
    def draw(cls, generator: random.Random, population: Population) -> "SimulatedPeer":
        return cls(
            peer=PeerId("12D3KooW" + "".join(generator.choices(_ALPHABET, k=44))),
            place=(generator.random(), generator.random()),
            capacity_units=generator.randint(*population.capacity_units),
            unit_ms=generator.uniform(*population.unit_ms),
            load_s=generator.uniform(*population.load_s),
            clock_skew_s=generator.uniform(-population.clock_skew_s, population.clock_skew_s),
        )

    @property
    def alive(self) -> bool:
        return self.died_at == math.inf

    def host(self, model: ModelId, spec: SimulatedModel, span: Span, neighbours: dict[PeerId, float]) -> NodeRecord:
        hosted = Hosted(
            model=model,
            name=spec.name,
            layers=spec.layers,
            span=span,
            dtype="bfloat16",
            step_ms=self.unit_ms * len(span),
            queue=0,
            free_tokens=100_000,
            max_context=spec.max_context,
        )
        nearest = sorted(neighbours.items(), key=lambda entry: entry[1])[:MAX_NEIGHBOURS]
        self.record = NodeRecord(
            peer=self.peer,
            swarm=SWARM,
            name=f"volunteer-{self.peer[-6:]}",
            version="0.1.0",
            protocol=PROTOCOL_VERSION,
            addresses=("/ip4/198.51.100.17/tcp/31337", "/ip4/192.168.1.17/tcp/31337"),
            hosted=(hosted,),
            rtt_ms=dict(nearest),
            started_at=0.0,
            expires_at=0.0,
        )
        return self.record

    @property
    def model(self) -> ModelId:
        assert self.record is not None
        return self.record.hosted[0].model

    @property
    def span(self) -> Span:
        assert self.record is not None
        return self.record.hosted[0].span

    @property
    def units(self) -> range:
        return range(self.span.start, self.span.stop)

    def claim(self, span: Span | None) -> None:
        """Say that it is about to hold other units of the same model; None takes it back."""
        self._say_coming(span, settled=False)

    def go(self, span: Span) -> None:
        self.moves_to = span
        self._say_coming(span, settled=True)

    def _say_coming(self, span: Span | None, *, settled: bool) -> None:
        assert self.record is not None
        held = self.record.hosted[0]
        coming = () if span is None else (Coming(held.model, held.name, held.layers, span, held.dtype, settled),)
        self.record = msgspec.structs.replace(self.record, coming=coming)

    def move(self) -> None:
        """Host what it goes to from now on."""
        assert self.record is not None
        assert self.moves_to is not None
        span, self.moves_to = self.moves_to, None
        hosted = msgspec.structs.replace(self.record.hosted[0], span=span, step_ms=self.unit_ms * len(span))
        self.record = msgspec.structs.replace(self.record, hosted=(hosted,), coming=())
        self.announced_at = math.inf

    def announce(self, now: float, queue: int, *, withdrawn: bool = False) -> NodeRecord:
        """The record, stamped by this peer's own clock."""
        assert self.record is not None
        hosted = msgspec.structs.replace(self.record.hosted[0], queue=queue)
        expires_at = now + self.clock_skew_s + RECORD_TTL_S
        self.record = msgspec.structs.replace(self.record, hosted=(hosted,), expires_at=expires_at, withdrawn=withdrawn)
        self.announced_at = min(self.announced_at, now)
        return self.record

    def rtt_ms(self, other: "SimulatedPeer") -> float:
        return round(2.0 + 150.0 * math.dist(self.place, other.place), 2)


def record_bytes(record: NodeRecord) -> int:
    """On the wire, signed."""
    return len(msgspec.msgpack.encode(record)) + SIGNATURE_BYTES


def next_announcement_s(generator: random.Random) -> float:
    """The period with the little drift that real timers have."""
    return ANNOUNCE_PERIOD_S * generator.uniform(0.98, 1.02)
