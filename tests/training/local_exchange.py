"""Names for a test's peers, and an `Exchange` for each of them in one process."""

from collections.abc import Collection, Sequence

from shoal.compression.aggregate import weighted_mean
from shoal.node.training.local_exchange import Combine, LocalExchange, LocalGroup
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import RunSpec


def peers(count: int) -> tuple[PeerId, ...]:
    return tuple(PeerId(f"peer-{index:03d}") for index in range(count))


def run_spec(
    fragments: Sequence[int],
    preset: str = "none",
    shards: int = 2,
    quorum: int = 1,
    reducer_decay: float = 1.0,
    robust: str = "mean",
) -> RunSpec:
    return RunSpec(
        name="test",
        model="0" * 64,
        data="0" * 64,
        strategy="test",
        fragments=tuple(fragments),
        preset=preset,
        shards=shards,
        quorum=quorum,
        reducer_decay=reducer_decay,
        robust=robust,
    )


def local_exchanges(
    spec: RunSpec, count: int, skipped: Collection[int] = (), combine: Combine = weighted_mean
) -> tuple[LocalGroup, list[LocalExchange]]:
    """A group of `count` peers, and what each of them calls."""
    group = LocalGroup(spec, peers(count), skipped, combine)
    return group, [group.exchange_of(peer) for peer in peers(count)]
