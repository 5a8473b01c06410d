"""From samples of a model's KV cache, and of how sensitive its output is to them, to a profile.

For small errors e in a key or value vector the divergence of the output is half of e^T F e, with F the sensitivity
(the Fisher information, when it comes from gradients). With S S = F and U the eigenvectors of S cov S, the components
z = (x - mean) S U are uncorrelated and an error in z costs its plain square: reverse water-filling then asks for one
step for all components.
source: Goyal, Theoretical foundations of transform coding, 2001
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .entropy_table import SLOTS, table_from_counts
from .kv_profile import ALPHABET, CLASSES, ESCAPE, LARGEST_SYMBOL, LOWEST_CLASS, ZERO, KvProfile
from .rotary import rotate, rotation

# Of the mean sensitivity: below it an estimate is mostly noise, and a large error would leave the quadratic regime.
RIDGE = 1e-2
# Brings the steps of the three levels to about one, where float16 matrices are at their most exact.
SCALE = 64.0
SPREAD_LIMIT = 100
# The first tokens of a document draw attention to themselves and lie far out; they would bend every estimate.
SINK_TOKENS = 4
TABLE_SAMPLES = 200_000

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class KvSample:
    """One document: keys (rotated) and values (L, T, H, D)."""

    keys: Floats
    values: Floats
    first_position: int = 0

    @property
    def without_sink(self) -> "KvSample":
        skipped = max(0, min(SINK_TOKENS - self.first_position, self.keys.shape[1] - 1))
        return KvSample(self.keys[:, skipped:], self.values[:, skipped:], self.first_position + skipped)


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """(L, C, C) symmetric, C = heads * width: of unrotated keys, and of values."""

    keys: Doubles
    values: Doubles


def fit_profile(
    samples: Sequence[KvSample],
    sensitivity: Sensitivity,
    inverse_frequencies: Doubles,
    groups: int,
    steps: tuple[int, int, int],
) -> KvProfile:
    """groups: 1 joins all heads of a layer, the number of heads keeps each to itself.

    raises: ValueError for samples that are not finite
    """
    layers, _, heads, width = samples[0].keys.shape
    channels = heads * width
    if not all(np.isfinite(sample.keys).all() and np.isfinite(sample.values).all() for sample in samples):
        raise ValueError("samples that are not finite")
    samples = [sample.without_sink for sample in samples]
    offsets = np.mean([sample.keys.mean(axis=1, dtype=np.float64) for sample in samples], axis=0)
    offsets = offsets.reshape(layers, channels).astype(np.float32)
    still = [unrotated(sample, inverse_frequencies, offsets.reshape(layers, 1, heads, width)) for sample in samples]
    rows = np.stack(
        [
            np.concatenate([keys.reshape(layers, -1, channels) for keys in still], axis=1),
            np.concatenate([sample.values.reshape(layers, -1, channels) for sample in samples], axis=1),
        ]
    )
    means = rows.mean(axis=2, dtype=np.float64).astype(np.float32)
    rows -= means[:, :, None]
    side = channels // groups
    forward = np.empty((2, layers, groups, side, side), np.float16)
    spreads = np.empty((2, layers, channels), np.int8)
    counts = np.zeros((CLASSES, ALPHABET), np.int64)
    for kind, weights in enumerate((sensitivity.keys, sensitivity.values)):
        for layer in range(layers):
            for group in range(groups):
                part = slice(group * side, (group + 1) * side)
                x = rows[kind, layer, :, part]
                matrix = _transform(x.astype(np.float64), weights[layer, part, part]).astype(np.float16)
                z = x @ matrix.astype(np.float32)
                spread = np.log2(np.maximum(z.std(axis=0, dtype=np.float64), 1e-12)) * 4
                forward[kind, layer, group] = matrix
                spreads[kind, layer, part] = np.clip(np.rint(spread), -SPREAD_LIMIT, SPREAD_LIMIT)
                stride = max(1, z.size * 2 * layers * groups // (TABLE_SAMPLES * 8))
                counts += _counts(z[::stride], spreads[kind, layer, part])
    return KvProfile(
        layers,
        heads,
        width,
        groups,
        inverse_frequencies.astype(np.float64),
        offsets,
        means,
        forward,
        spreads,
        table_from_counts(_usable(counts)),
        steps,
    )


def unrotated(sample: KvSample, inverse_frequencies: Doubles, offsets: Floats | float = 0.0) -> Floats:
    positions = np.arange(sample.first_position, sample.first_position + sample.keys.shape[1])
    cosines, sines = rotation(inverse_frequencies, positions)
    return rotate((sample.keys - offsets).astype(np.float32), cosines, -sines)


def _transform(x: Doubles, weights: Doubles) -> Doubles:
    side = x.shape[1]
    ridge = RIDGE * np.trace(weights) / side
    values, vectors = np.linalg.eigh(weights + max(float(ridge), 1e-12) * np.eye(side))
    root = (vectors * np.sqrt(values)) @ vectors.T
    _, basis = np.linalg.eigh(root @ (x.T @ x / len(x)) @ root)
    return np.asarray(SCALE * root @ basis[:, ::-1])


def _counts(z: Floats, spreads: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """How often each symbol would occur in each class, had the component that class at some step."""
    counts = np.zeros((CLASSES, ALPHABET), np.int64)
    unit = z * np.exp2(-spreads / 4).astype(np.float32)
    for index in range(CLASSES):
        numbers = np.rint(unit * np.float32(2.0 ** ((index + LOWEST_CLASS) / 4)))
        symbols = np.where(np.abs(numbers) > LARGEST_SYMBOL, ESCAPE, numbers + ZERO).astype(np.int64)
        counts[index] = np.bincount(symbols.ravel(), minlength=ALPHABET)
    return counts


def _usable(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Both signs alike, and only the stretch around zero where a symbol earns half a slot; the rest escapes."""
    even = counts[:, :ESCAPE] + counts[:, ESCAPE - 1 :: -1]
    total = np.maximum(counts.sum(axis=1) * 2, 1)
    rare = even[:, ZERO:] * SLOTS * 2 < total[:, None]
    beyond = np.maximum.accumulate(rare[:, 1:], axis=1)
    kept = even.copy()
    kept[:, ZERO + 1 :][beyond] = 0
    kept[:, ZERO - 1 :: -1][beyond] = 0
    escaped = 2 * counts[:, ESCAPE] + even.sum(axis=1) - kept.sum(axis=1)
    kept[:, ZERO] += kept[:, ZERO] == 0
    return np.concatenate([kept, np.maximum(escaped, 1)[:, None]], axis=1)
