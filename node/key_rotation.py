"""Which channels of a model's keys turn with the position, how fast, and in which pairs: found by experiment.

A text of one token repeated gives every layer the same key at every position but for what the position does to it.
Whatever rotation brings such keys to rest is the model's own: scaled, partial, of some layers only, of a kind of its
own in each layer, halves or neighbours, and none.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from shoal.compression.kv_fitting import KvSample, unrotated
from shoal.compression.rotary import halves_order

from .kv_quality import Model, cached, stacked

PROBE_TOKENS = 128
# Of the unrest without it: a rotation that leaves more than this is no improvement but chance.
CLEARLY_LESS = 0.8

Doubles = npt.NDArray[np.float64]
Order = npt.NDArray[np.int64] | slice


@dataclass(frozen=True, slots=True, eq=False)
class KeyRotation:
    """inverse_frequencies: (L, R/2) radians a position, zero in layers that do not turn; order: of a head's channels
    such that those that turn together are i and i + R/2"""

    inverse_frequencies: Doubles
    neighbours: bool
    order: Order


def key_rotation(model: Model) -> KeyRotation:
    probes = [_repeated(model, model.config.vocab_size // part) for part in (2, 3, 5)]
    layers, _, _, width = probes[0].keys.shape
    still = _unrest(probes, np.empty(0), slice(None))
    best = KeyRotation(np.empty((layers, 0)), False, slice(None))
    least = CLEARLY_LESS * float(still.sum())
    for half, rows in _known_frequencies(model).items():
        for neighbours in (False, True):
            order = halves_order(width, half) if neighbours else slice(None)
            unrest_rl = np.stack([CLEARLY_LESS * still, *(_unrest(probes, row, order) for row in rows)])
            if float(unrest_rl.min(axis=0).sum()) < least:
                least = float(unrest_rl.min(axis=0).sum())
                chosen = np.stack([np.zeros(half), *rows])[unrest_rl.argmin(axis=0)]
                best = KeyRotation(chosen, neighbours, order)
    return best


def _known_frequencies(model: Model) -> dict[int, list[Doubles]]:
    """By their number: all that the model's buffers hold."""
    found: dict[int, list[Doubles]] = {}
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and "original" not in name and buffer.dim() == 1:
            row = np.asarray(buffer.detach().double().cpu().numpy())
            rows = found.setdefault(len(row), [])
            if not any(np.array_equal(row, other) for other in rows):
                rows.append(row)
    return found


def _repeated(model: Model, token: int) -> KvSample:
    positions = getattr(model.config, "max_position_embeddings", None) or PROBE_TOKENS
    with torch.no_grad():
        _, keys, values = cached(model, torch.full((min(PROBE_TOKENS, positions),), token))
    return KvSample(stacked(keys), stacked(values))


def _unrest(probes: list[KvSample], frequencies: Doubles, order: Order) -> Doubles:
    """(L,): how far from their means keys are over the positions, after turning back, as a share of their size."""
    total = np.zeros(len(probes[0].keys))
    for probe in probes:
        keys = unrotated(KvSample(probe.keys[..., order], probe.values), frequencies).astype(np.float64)
        apart = np.square(keys - keys.mean(axis=1, keepdims=True)).sum(axis=(1, 2, 3))
        total += apart / np.maximum(np.square(keys).sum(axis=(1, 2, 3)), 1e-30)
    return total
