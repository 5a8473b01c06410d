"""What an owner does with the payloads of its shard: decode, gate, mean, own error feedback, one payload for all.

Pure and heavy, so the machine only asks for it: a shell runs it beside the loop.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from shoal.compression.aggregate import Contribution
from shoal.compression.error_feedback import ErrorFeedback, send
from shoal.compression.errors import MalformedPayload
from shoal.compression.sparse_codec import SparseCodec
from shoal.compression.sparse_update import Positions, SparseUpdate, closed_up
from shoal.compression.update_codec import Codec, Values
from shoal.swarm.identifiers import PeerId

from .exchange import RunSpec, seed_of
from .gates import gates_of, refusals
from .residuals import Step, residual_root, unit_values
from .robust import robust_mean

Sent = tuple[PeerId, int, bytes]  # contributor, tokens, payload


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """payload: None when nothing was left to reduce; refused: contributor to reason"""

    job: "ReduceJob"
    payload: bytes | None
    step: Step | None
    root: bytes
    refused: dict[PeerId, str]

    @property
    def hash(self) -> bytes:
        return b"" if self.payload is None else aggregate_hash(self.payload)


@dataclass(frozen=True, slots=True, eq=False)
class ReduceJob:
    spec: RunSpec
    round: int
    fragment: int
    shard: int
    roster: bytes  # digest; tells reductions for different groups apart
    contributions: tuple[Sent, ...]
    feedback: ErrorFeedback

    def run(self) -> Reduction:
        codec = self.spec.codec()
        seed = seed_of(self.round, self.fragment, self.shard)
        count = len(self.feedback.residual)
        contributions, refused = decoded(self.spec, self.contributions, count, seed)
        mean, opposed = gated_mean(self.spec, contributions, count)
        refused |= opposed
        if mean is None:
            return Reduction(self, None, None, b"", refused)
        sent = send(codec, self.feedback, mean, seed)
        root = residual_root(sent.feedback.residual, unit_values(codec, count))
        return Reduction(self, sent.payload, Step(self.feedback, sent.feedback), root, refused)


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    job: "CheckJob"
    malformed: tuple[bytes, ...]  # hashes


@dataclass(frozen=True, slots=True, eq=False)
class CheckJob:
    """Whether aggregates are what the codec writes: nobody votes for bytes that no replica could apply."""

    spec: RunSpec
    round: int
    fragment: int
    aggregates: tuple[tuple[int, bytes, bytes], ...]  # shard, hash, payload

    def run(self) -> Checked:
        codec, bounds = self.spec.codec(), self.spec.sharding(self.fragment).bounds()
        malformed = []
        for shard, hash_, payload in self.aggregates:
            start, stop = bounds[shard]
            try:
                codec.decode(payload, stop - start, seed_of(self.round, self.fragment, shard))
            except MalformedPayload:
                malformed.append(hash_)
        return Checked(self, tuple(malformed))


def aggregate_hash(payload: bytes) -> bytes:
    return hashlib.sha256(payload).digest()


def decoded(
    spec: RunSpec, sent: tuple[Sent, ...], count: int, seed: int
) -> tuple[list[Contribution], dict[PeerId, str]]:
    """The contributions that are payloads at all, and why the others are not.

    Of payloads that are the same to the byte, and not empty of content, only the first peer's counts.
    """
    codec, contributions, refused = spec.codec(), [], {}
    copies = Counter(payload for _, _, payload in sent)
    seen: set[bytes] = set()
    for peer, tokens, payload in sorted(sent):
        try:
            update = update_of(codec, payload, count, seed)
        except MalformedPayload as error:
            refused[peer] = f"malformed: {error}"
            continue
        said = update.values if isinstance(update, SparseUpdate) else update
        if copies[payload] > 1 and payload in seen and np.any(said):
            refused[peer] = "a copy of another peer's update"
            continue
        seen.add(payload)
        contributions.append(Contribution(peer, tokens, update))
    return contributions, refused


def update_of(codec: Codec, payload: bytes, count: int, seed: int) -> Values | SparseUpdate:
    """Sparse where the codec is. raises: MalformedPayload"""
    if isinstance(codec, SparseCodec):
        return codec.decode_sparse(payload, count, seed)
    return codec.decode(payload, count, seed)


def gated_mean(spec: RunSpec, contributions: list[Contribution], count: int) -> tuple[Values | None, dict[PeerId, str]]:
    """The mean of what counts, None when nothing does; and why the rest does not count."""
    union, close = _closed_up(contributions)
    refused = {PeerId(who): reason for who, reason in refusals(close, gates_of(spec.robust)).items()}
    sound = [c for c in close if c.contributor not in refused]
    if not sound:
        return None, refused
    mean = robust_mean(spec.robust, sound)
    return mean if union is None else SparseUpdate(count, union, mean).dense(), refused


def _closed_up(contributions: list[Contribution]) -> tuple[Positions | None, list[Contribution]]:
    """Sparse ones without the places where all of them are zero; None and as they are for others."""
    updates = [c.update for c in contributions if isinstance(c.update, SparseUpdate)]
    if len(updates) < len(contributions) or not updates:
        return None, contributions
    union, close = closed_up(updates)
    return union, [Contribution(c.contributor, c.tokens, u) for c, u in zip(contributions, close, strict=True)]
