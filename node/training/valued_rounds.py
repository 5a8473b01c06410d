"""The rounds of a run with what each peer offered in them, read from disk, for whoever asks what an offer was worth.

`rounds` in a run's folder holds what all peers applied; `updates`, where `output.updates` is set, what this peer alone
offered. The updates of other peers come from copies of their folders; a round counts as valued when everybody's are
there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.compression.aggregate import Contribution
from shoal.compression.errors import MalformedPayload
from shoal.compression.update_codec import Values
from shoal.swarm.errors import MalformedMessage, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.delta_entry import read_head, read_outcome
from shoal.swarm.rounds.exchange import Outcome, RunSpec, seed_of

from .worker_keeper import LOG, UPDATES


@dataclass(frozen=True, slots=True, eq=False)
class ValuedRound:
    """aggregate: (F,) what all applied; offers: by peer, empty when not all of them are there"""

    round: int
    fragment: int
    before: bytes  # state that it starts from
    aggregate: Values
    offers: dict[PeerId, Contribution]
    contributors: tuple[tuple[PeerId, int], ...]


def read_rounds(folder: Path, others: Sequence[Path], run: str, spec: RunSpec) -> list[ValuedRound]:
    """folder: of the run; others: the same of other peers, or what they copied from it

    raises: UsageError when there are no rounds, or files are damaged or of another run
    """
    offered: dict[tuple[int, int, bytes], dict[PeerId, Outcome]] = {}
    for place in (folder, *others):
        for outcome, before in _outcomes(place / UPDATES if (place / UPDATES).is_dir() else place, run):
            (peer, _), *more = outcome.contributors
            if not more:
                offered.setdefault((outcome.round, outcome.fragment, before), {})[peer] = outcome
    found = []
    for outcome, before in _outcomes(folder / LOG, run):
        given = offered.get((outcome.round, outcome.fragment, before), {})
        whole = all(given.get(peer, outcome).contributors == ((peer, tokens),) for peer, tokens in outcome.contributors)
        offers = {
            peer: Contribution(peer, tokens, decoded(spec, given[peer]))
            for peer, tokens in (outcome.contributors if whole else ())
        }
        found.append(
            ValuedRound(outcome.round, outcome.fragment, before, decoded(spec, outcome), offers, outcome.contributors)
        )
    if not found:
        raise UsageError(f"{folder} holds no rounds of this run")
    if not any(each.offers for each in found):
        raise UsageError(
            f"no round of {folder} has the updates of all its peers; set output.updates = true at each of them before "
            "the training, and give their folders with --with"
        )
    return found


def _outcomes(folder: Path, run: str) -> list[tuple[Outcome, bytes]]:
    """raises: UsageError"""
    found = []
    for path in sorted(folder.glob("*.delta")):
        try:
            entry, data = read_head(path, run)
            found.append((read_outcome(path, data), entry.about.before))
        except MalformedMessage as error:
            raise UsageError(f"{folder}: {error}") from error
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return found


def decoded(spec: RunSpec, outcome: Outcome) -> Values:
    """(F,) of the fragment. raises: UsageError"""
    bounds, codec = spec.sharding(outcome.fragment).bounds(), spec.codec()
    if len(bounds) != len(outcome.aggregates):
        raise UsageError(f"round {outcome.round} has {len(outcome.aggregates)} shards instead of {len(bounds)}")
    values = np.empty(bounds[-1][1], np.float32)
    for shard, (payload, (start, stop)) in enumerate(zip(outcome.aggregates, bounds, strict=True)):
        try:
            values[start:stop] = codec.decode(payload, stop - start, seed_of(outcome.round, outcome.fragment, shard))
        except MalformedPayload as error:
            raise UsageError(f"round {outcome.round}, shard {shard}: {error}") from error
    return values
