"""A model of hashes: as easy to compute as to check, and unforgiving about order.

Every layer folds each position into a running digest of all positions before it. So a gap, a repetition, two
positions in the wrong order, a skipped or doubled layer, or one wrong hidden state change every token that follows.

A hidden state is the 8 bytes of a digest as 8 small floats, which float32, bfloat16 and float16 all carry exactly.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.compression import activations
from shoal.swarm.manifest import FileEntry, Manifest, TensorEntry
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Choice
from shoal.swarm.units import Span, has_embed, has_head, layer_range

WIDTH = 8  # values of a hidden state, each a whole number from 0 to 255
_FLOATS = struct.Struct(f"<{WIDTH}f")
START = bytes(WIDTH)  # the digest before the first position
GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    layers: int
    vocabulary: int = 1000
    max_context: int = 4096
    name: str = "hashes"

    def manifest(self) -> Manifest:
        weights = FileEntry("model.safetensors", 4, hashlib.sha256(self.name.encode()).hexdigest())
        return Manifest(
            name=self.name,
            architecture="SimulatedForCausalLM",
            model_type="simulated",
            layers=self.layers,
            hidden=WIDTH,
            vocabulary=self.vocabulary,
            max_context=self.max_context,
            dtype="float32",
            tensors=(TensorEntry("nothing", "F32", (1,), weights.name),),
            weights=(weights,),
            texts=(),
        )

    def step(self, span: Span, digests: dict[int, bytes], value: bytes) -> bytes:
        """One position through the units of `span`. `digests` (layer's unit -> digest) is brought up to date.

        value: an id as 8 bytes when the span begins with embed, else a hidden state
        returns: the hidden state, or the digest that the head draws from when the span ends with head
        """
        for unit in range(span.start, span.stop):
            value = _digest(b"unit", unit.to_bytes(4), digests.get(unit, START), value)
            if 0 < unit <= self.layers:  # embed and head remember nothing
                digests[unit] = value
        return value

    def choose(self, last: bytes, position: int, sampling: Sampling) -> Choice:
        """The token after `position` positions: a pure function of the digest and, unless greedy, (seed, position)."""
        if sampling.temperature > 0:
            last = _digest(b"draw", sampling.seed.to_bytes(8), position.to_bytes(8), last)
        ranked = [self._candidate(last, rank) for rank in range(max(0, sampling.top_logprobs) + 1)]
        if sampling.top_logprobs < 0:
            return Choice(ranked[0][0], 0.0)
        return Choice(*ranked[0], tuple(ranked[: sampling.top_logprobs]))

    def _candidate(self, last: bytes, rank: int) -> tuple[int, float]:
        token = (int.from_bytes(last) + rank) % self.vocabulary
        return token, -0.125 * (rank + 1)

    def expected_tokens(self, prompt: Sequence[int], count: int, sampling: Sampling = GREEDY) -> list[int]:
        """What an undisturbed generation gives, computed in one place."""
        span, digests, ids = Span(0, self.layers + 2), dict[int, bytes](), list(prompt)
        last = START
        for token in prompt:
            last = self.step(span, digests, token.to_bytes(WIDTH))
        while len(ids) < len(prompt) + count:
            ids.append(self.choose(last, len(ids), sampling).id)
            last = self.step(span, digests, ids[-1].to_bytes(WIDTH))
        return ids[len(prompt) :]

    def kept_units(self, span: Span) -> range:
        """Those of a span that have a cache."""
        inside = layer_range(span, self.layers)
        return range(inside.start + 1, inside.stop + 1)

    def begins_with_ids(self, span: Span) -> bool:
        return has_embed(span)

    def ends_with_tokens(self, span: Span) -> bool:
        return has_head(span, self.layers)


def pack_hidden(values: Sequence[bytes]) -> bytes:
    """returns: an activation of shape (len(values), WIDTH), float32"""
    return activations.pack("float32", len(values), WIDTH, b"".join(_FLOATS.pack(*value) for value in values))


def unpack_hidden(data: bytes, count: int) -> list[bytes]:
    """raises: MalformedPayload for a wrong shape; ValueError for values that no simulated unit gives, NaN among them"""
    body = activations.parse(data, count, WIDTH).body
    return [bytes(map(_whole, _FLOATS.unpack_from(body, at * _FLOATS.size))) for at in range(count)]


def _whole(value: float) -> int:
    if not 0 <= value <= 255 or value != int(value):  # also false for NaN
        raise ValueError(f"a hidden value of {value}")
    return int(value)


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=WIDTH).digest()
