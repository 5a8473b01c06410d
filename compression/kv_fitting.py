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
FIXED_RIDGE = 0.05

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
    """(L, C, C), C = heads * width: of unrotated keys, of values (both symmetric), and of keys against values.

    cross: None is as good as zero, and all that keys and values with transforms of their own need
    """

    keys: Doubles
    values: Doubles
    cross: Doubles | None = None

    def plus(self, other: "Sensitivity") -> "Sensitivity":
        cross = None if self.cross is None or other.cross is None else self.cross + other.cross
        return Sensitivity(self.keys + other.keys, self.values + other.values, cross)

    def divided_by(self, count: float) -> "Sensitivity":
        cross = None if self.cross is None else self.cross / count
        return Sensitivity(self.keys / count, self.values / count, cross)

    def of_layer(self, layer: int) -> Doubles:
        """(2 C, 2 C), keys first."""
        keys, values = self.keys[layer], self.values[layer]
        cross = np.zeros_like(keys) if self.cross is None else self.cross[layer]
        return np.block([[keys, cross], [cross.T, values]])


def fit_profile(
    samples: Sequence[KvSample],
    sensitivity: Sensitivity,
    inverse_frequencies: Doubles,
    groups: int,
    steps: tuple[int, int, int],
    *,
    together: bool = False,
    neighbours: bool = False,
) -> KvProfile:
    """groups: 1 joins all heads of a layer, the number of heads keeps each to itself.

    inverse_frequencies: (L, R/2), or (R/2,) for all layers; together: one transform for the keys and values of a
    group; neighbours: the model turns channels (2 i, 2 i + 1); samples and sensitivity are in the order of halves

    raises: ValueError for samples that are not finite
    """
    layers, _, heads, width = samples[0].keys.shape
    channels = heads * width
    if not all(np.isfinite(sample.keys).all() and np.isfinite(sample.values).all() for sample in samples):
        raise ValueError("samples that are not finite")
    samples = [sample.without_sink for sample in samples]
    offsets = fixed_keys(samples, inverse_frequencies).reshape(layers, channels)
    still = [unrotated(sample, inverse_frequencies, offsets.reshape(layers, 1, heads, width)) for sample in samples]
    rows = np.concatenate(
        [
            np.concatenate([keys.reshape(layers, -1, channels) for keys in still], axis=1),
            np.concatenate([sample.values.reshape(layers, -1, channels) for sample in samples], axis=1),
        ],
        axis=2,
    )
    means = rows.mean(axis=1, dtype=np.float64).astype(np.float32)
    rows -= means[:, None]
    columns = _group_columns(channels, groups, together=together)
    parts, _, side = columns.shape
    forward = np.empty((layers, parts, groups, side, side), np.float16)
    spreads = np.empty((layers, parts, groups, side), np.int8)
    counts = np.zeros((CLASSES, ALPHABET), np.int64)
    for layer in range(layers):
        weights = sensitivity.of_layer(layer)
        for part, group in np.ndindex(parts, groups):
            chosen = columns[part, group]
            x = rows[layer][:, chosen]
            matrix = _transform(x.astype(np.float64), weights[np.ix_(chosen, chosen)]).astype(np.float16)
            z = x @ matrix.astype(np.float32)
            spread = np.log2(np.maximum(z.std(axis=0, dtype=np.float64), 1e-12)) * 4
            forward[layer, part, group] = matrix
            spreads[layer, part, group] = np.clip(np.rint(spread), -SPREAD_LIMIT, SPREAD_LIMIT)
            stride = max(1, z.size * parts * layers * groups // (TABLE_SAMPLES * 8))
            counts += _counts(z[::stride], spreads[layer, part, group])
    return KvProfile(
        layers,
        heads,
        width,
        groups,
        together,
        neighbours,
        np.tile(inverse_frequencies.astype(np.float64), (1 if inverse_frequencies.ndim == 2 else layers, 1)),
        offsets,
        means.reshape(layers, 2, channels),
        forward,
        spreads.reshape(layers, parts, -1),
        table_from_counts(_usable(counts)),
        steps,
    )


def fixed_keys(samples: Sequence[KvSample], inverse_frequencies: Doubles) -> Floats:
    """(L, H, D): what all keys have in common as attention reads them, whatever their position.

    Least squares of key = fixed + turned(mean): a mean that turns with the position (any bias before the rotary
    embedding) is no fixed vector, and taking it for one would fail at positions that the samples do not reach. Where
    the positions do not tell them apart, the ridge leaves it to the mean.
    """
    layers, _, heads, width = samples[0].keys.shape
    half = inverse_frequencies.shape[-1]
    fixed = np.zeros((layers, heads, width))
    tokens, turned_sum = 0, np.zeros((layers, 1, half), np.complex128)
    plain, still = (np.zeros((layers, heads, half), np.complex128) for _ in range(2))
    for sample in samples:
        cosines, sines = rotation(inverse_frequencies, sample.first_position, sample.keys.shape[1])
        turns = np.broadcast_to(cosines + 1j * sines.astype(np.complex128), (layers, *cosines.shape[-2:]))
        pairs = sample.keys[..., :half] + 1j * sample.keys[..., half : 2 * half]
        tokens += turns.shape[1]
        turned_sum += turns.sum(axis=1, keepdims=True)
        plain += pairs.sum(axis=1)
        still += np.einsum("lthr,ltr->lhr", pairs, turns.conj())
    # [n (1 + ridge), s; s*, n] [fixed, mean] = [plain, still]
    share = turned_sum / tokens
    solved = (plain - share * still) / (tokens * (1 + FIXED_RIDGE - np.abs(share) ** 2))
    fixed[..., :half], fixed[..., half : 2 * half] = solved.real, solved.imag
    return fixed.astype(np.float32)


def _group_columns(channels: int, groups: int, *, together: bool) -> npt.NDArray[np.int64]:
    """(P, G, W): the columns of [keys, values] that each group's transform takes, in order."""
    kinds = np.arange(2 * channels).reshape(2, groups, channels // groups)
    return np.concatenate([kinds[:1], kinds[1:]], axis=2) if together else kinds


def unrotated(sample: KvSample, inverse_frequencies: Doubles, offsets: Floats | float = 0.0) -> Floats:
    cosines, sines = rotation(inverse_frequencies, sample.first_position, sample.keys.shape[1])
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
