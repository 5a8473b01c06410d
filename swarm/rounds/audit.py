"""Checking an owner's work after the fact: which shards, which part of them, and whether it was done right.

The draw comes from the decision itself, so an owner learns that it is audited only when its aggregate is fixed. The
auditor repeats the reduction for one unit of the shard: the committed contributions it gets from their senders, the
unit of the residual from the owner with a proof against the root in the decision before. That costs 32 bits for each
value of a unit instead of the 32 bits for each value of the shard that a second owner would need, which is more than a
whole round of `sparse`. All inputs are committed to, so whoever repeats the check comes to the same verdict.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.compression.aggregate import Contribution
from shoal.compression.errors import MalformedPayload
from shoal.compression.update_codec import Values
from shoal.swarm.identifiers import PeerId

from . import hash_tree
from .audit_messages import Residual
from .decisions import Decision, Done, ShardResult, digest, indices
from .exchange import RunSpec, seed_of
from .gates import gates_of, refusals
from .ownership import jury
from .reducing import Sent, aggregate_hash, decoded
from .residuals import LOCAL_PRESETS, unit_values
from .robust import robust_mean

RESIDUAL_BITS = 0.01  # per parameter, peer and round: what residuals may cost where a unit is a whole shard
MARGIN = 1e-6  # by which the gates' sums may differ between machines; the means are the same to the last bit


@dataclass(frozen=True, slots=True)
class Draw:
    """One unit of one shard to check; auditor, then up to three jurors."""

    shard: int
    unit: int
    auditor: PeerId
    jurors: tuple[PeerId, ...]


def draws(spec: RunSpec, decision: Decision, share: float) -> list[Draw]:
    """What of a round is checked, by whom: the same at all members. Nothing in groups of two: who would judge?"""
    value, roster = decision.value, decision.roster
    if not isinstance(value, Done) or roster is None or len(roster.members) < 3:
        return []
    beacon = digest(value)
    bounds = spec.sharding(roster.fragment).bounds()
    chance = share if spec.preset in LOCAL_PRESETS or share >= 1 else affordable_share(len(roster.members), share)
    drawn = []
    for shard, (start, stop) in enumerate(bounds):
        if _fraction(beacon, shard, b"whether") >= chance:
            continue
        drawn.append(draw_of(spec, decision, beacon, shard, stop - start))
    return drawn


def draw_of(spec: RunSpec, decision: Decision, beacon: bytes, shard: int, count: int) -> Draw:
    assert isinstance(decision.value, Done)
    assert decision.roster is not None
    owner = decision.roster.members[decision.value.shards[shard].owner].peer
    units = -(-count // unit_values(spec.codec(), count))
    unit = int(_fraction(beacon, shard, b"where") * units)
    order = jury(beacon, shard, decision.roster.peers, {owner, *decision.value.excluded})
    return Draw(shard, unit, order[0], tuple(order[1:]))


def affordable_share(members: int, share: float) -> float:
    """The share of shards whose whole residual may travel each round."""
    return min(share, RESIDUAL_BITS * members / 32)


def _fraction(beacon: bytes, shard: int, what: bytes) -> float:
    drawn = hashlib.sha256(b"shoal audit 1\0" + what + beacon + shard.to_bytes(4, "little")).digest()
    return int.from_bytes(drawn[:6], "little") / 2**48


@dataclass(frozen=True, slots=True, eq=False)
class Audited:
    """fault: what the owner did wrong, empty when nothing; unproven: the evidence itself does not hold"""

    job: "AuditJob"
    fault: str
    unproven: str


@dataclass(frozen=True, slots=True, eq=False)
class AuditJob:
    """before_root: of the owner's residual before the round, None where it had to be empty."""

    spec: RunSpec
    round: int
    fragment: int
    result: ShardResult
    evidence: Residual
    before_root: bytes | None
    contributions: tuple[Sent, ...]  # all that arrived, each checked against its commitment
    members: tuple[PeerId, ...]
    aggregate: bytes

    def run(self) -> Audited:
        start, stop = self.spec.sharding(self.fragment).bounds()[self.evidence.shard]
        count = stop - start
        unit = unit_values(self.spec.codec(), count)
        first, last = self.evidence.unit * unit, min(count, (self.evidence.unit + 1) * unit)
        residual = self._residual(count, unit, last - first)
        if residual is None:
            return Audited(self, "", "the residual shown is not the one committed to")
        return Audited(self, self._fault(residual, count, unit, first, last), "")

    def _residual(self, count: int, unit: int, length: int) -> Values | None:
        if len(self.evidence.values) != 4 * length or aggregate_hash(self.aggregate) != self.result.aggregate:
            return None
        residual = np.frombuffer(self.evidence.values, "<f4").astype(np.float32)
        if self.before_root is None:
            return residual if not residual.any() else None
        leaf = hash_tree.leaf_hash(self.evidence.values)
        units = -(-count // unit)
        shown = hash_tree.shows(self.before_root, units, self.evidence.unit, leaf, self.evidence.before)
        return residual if shown else None

    def _fault(self, residual: Values, count: int, unit: int, first: int, last: int) -> str:
        seed = seed_of(self.round, self.fragment, self.evidence.shard)
        contributions, refused = decoded(self.spec, self.contributions, count, seed)
        said = {self.members[i] for i in indices(self.result.refused, len(self.members))}
        gates = gates_of(self.spec.robust)
        surely = refused.keys() | refusals(contributions, gates, MARGIN)
        perhaps = refused.keys() | refusals(contributions, gates, -MARGIN)
        if not surely <= said <= perhaps:
            return f"it refused {len(said)} updates where {len(surely)} to {len(perhaps)} deserve it"
        mean = _mean(self.spec, [c for c in contributions if c.contributor not in said])
        if mean is None:
            return "it reduced where nothing counted"
        target = np.float32(self.spec.reducer_decay) * residual + mean[first:last]
        try:
            sent = self.spec.codec().decode(self.aggregate, count, seed)[first:last]
        except MalformedPayload:
            return "its aggregate is malformed"
        if not _agrees(_coded(self.spec, target, seed), sent):
            return "its aggregate is not the mean of what it received"
        after = hash_tree.leaf_hash((target - sent).astype("<f4").tobytes())
        units = -(-count // unit)
        if not hash_tree.shows(self.result.residual, units, self.evidence.unit, after, self.evidence.after):
            return "what it kept is not what it left out"
        return ""


def _coded(spec: RunSpec, target: Values, seed: int) -> Values:
    codec = spec.codec()
    return codec.decode(codec.encode(target, seed), len(target), seed)


def _mean(spec: RunSpec, contributions: Sequence[Contribution]) -> Values | None:
    return robust_mean(spec.robust, contributions) if contributions else None


def _agrees(expected: Values, sent: Values) -> bool:
    """Whether two decoded units are the same but for the rounding of scales, which may look at the whole shard."""
    slack = 0.13 * np.abs(expected) + 1e-6 * np.abs(expected).max(initial=0)
    return bool((np.abs(expected - sent) <= slack).all())
