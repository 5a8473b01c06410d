"""What calibration learnt about a model's KV cache; made once, content addressed, travels with the model.

A vector x of one group (the keys or the values of a head, or of all heads of a layer, or keys and values side by side)
becomes z = (x - mean) forward. The forward matrix holds the sensitivity of the model's output to each direction and the
Karhunen-Loeve basis of what is left, so that equal errors in z cost equal quality and the components of z are
uncorrelated: one step for all of them allots the bits. Component c is spread like 2^(spreads[c] / 4); together with the
step (a quarter octave grid as well) that names the entropy table by integers alone.

Shape letters: L layers, C = heads * width channels of keys and as many of values, P parts (2: keys, values; 1: both
together), G groups of heads, W = 2 C / (P G) width of a group, which holds its keys first.
"""

import hashlib
import struct
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .byte_reader import ByteReader
from .container import seal, unseal
from .entropy_table import EntropyTable, pack_table, parse_table, table_from_counts
from .errors import MalformedPayload
from .kv_block import KvShape
from .kv_levels import LEVELS
from .rotary import halves_order, rotation

LOWEST_CLASS, HIGHEST_CLASS = -16, 32
CLASSES = HIGHEST_CLASS - LOWEST_CLASS + 1
LARGEST_SYMBOL = 60
ZERO = LARGEST_SYMBOL
ESCAPE = 2 * LARGEST_SYMBOL + 1
ALPHABET = ESCAPE + 1
HEAD = struct.Struct("<HHHHHB3b")
LARGEST_SIDE = 1 << 14
TOGETHER, NEIGHBOURS = 1, 2

Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class KvProfile:
    """inverse_frequencies: (L, R/2) radians a position, zero where nothing turns; neighbours: whether pairs that turn
    together are neighbours, all that follows is then in the order of `halves_order`; offsets: (L, C) mean of the keys
    as rotated, taken off first; means: (L, 2, C) of keys after that, unrotated, and of values; forward:
    (L, P, G, W, W); spreads: (L, P, G * W); table: CLASSES contexts of ALPHABET symbols; steps: quarter octaves of the
    step for each of LEVELS
    """

    layers: int
    heads: int
    width: int
    groups: int
    together: bool
    neighbours: bool
    inverse_frequencies: npt.NDArray[np.float64]
    offsets: Floats
    means: Floats
    forward: Halves
    spreads: npt.NDArray[np.int8]
    table: EntropyTable
    steps: tuple[int, int, int]

    @property
    def channels(self) -> int:
        return self.heads * self.width

    @property
    def parts(self) -> int:
        return 1 if self.together else 2

    @property
    def tensors(self) -> int:
        return self.parts * self.layers

    @property
    def part_channels(self) -> int:
        return 2 * self.channels // self.parts

    @property
    def group_width(self) -> int:
        return self.part_channels // self.groups

    @property
    def kind_width(self) -> int:
        """How many of a group's channels are keys, or values."""
        return self.channels // self.groups

    @cached_property
    def key_order(self) -> npt.NDArray[np.int64] | slice:
        """The channels of a key in the order of all that the profile knows about them."""
        return halves_order(self.width, self.inverse_frequencies.shape[1]) if self.neighbours else slice(None)

    def turns(self, first_position: int, tokens: int) -> tuple[Floats, Floats]:
        """Cosines and sines, (L, T, R/2); computed once for layers that turn alike."""
        alike, of_layer = np.unique(self.inverse_frequencies, axis=0, return_inverse=True)
        cosines, sines = rotation(alike, first_position, tokens)
        return cosines[of_layer], sines[of_layer]

    @cached_property
    def forward_matrices(self) -> Floats:
        return self.forward.astype(np.float32)

    @cached_property
    def inverse_matrices(self) -> Floats:
        return np.linalg.inv(self.forward.astype(np.float64)).astype(np.float32)

    @cached_property
    def limits(self) -> npt.NDArray[np.uint8]:
        """Per class the largest magnitude that has slots; beyond it is the escape."""
        positive = self.table.frequencies_cs[:, ZERO:ESCAPE] > 0
        return np.asarray(positive.sum(axis=1) - 1).astype(np.uint8)

    @cached_property
    def coarse_table(self) -> EntropyTable:
        """Of the symbols in threes: the base of a progressive chunk. Sums of slots, so nothing is lost."""
        return EntropyTable(_coarse(self.table.frequencies_cs))

    @cached_property
    def fine_table(self) -> EntropyTable:
        """Of the place in the three, in context class * 4 + min(|base|, 3), mirrored for a negative base."""
        return table_from_counts(_refinements(self.table.frequencies_cs.astype(np.int64)), floor=1)

    @cached_property
    def packed(self) -> bytes:
        flags = TOGETHER * self.together | NEIGHBOURS * self.neighbours
        half = self.inverse_frequencies.shape[1]
        head = HEAD.pack(self.layers, self.heads, self.width, self.groups, half, flags, *self.steps)
        arrays = (
            self.inverse_frequencies.astype("<f8"),
            self.offsets.astype("<f4"),
            self.means.astype("<f4"),
            self.forward.astype("<f2"),
            self.spreads,
        )
        return seal("kv-profile", [], head + b"".join(a.tobytes() for a in arrays) + pack_table(self.table))

    @cached_property
    def digest(self) -> bytes:
        """The profile's address: SHA-256 of its bytes."""
        return hashlib.sha256(self.packed).digest()

    def step_quarters(self, level: str) -> int:
        """raises: ValueError for a level that is none of LEVELS"""
        if level not in LEVELS:
            raise ValueError(f"no level {level!r}; there are {', '.join(LEVELS)}")
        return self.steps[LEVELS.index(level)]

    def part(self, first: int, stop: int) -> "KvProfile":
        """What it says of the layers [first, stop) alone, as a profile of its own."""
        cut = slice(first, stop)
        return replace(
            self,
            layers=stop - first,
            inverse_frequencies=self.inverse_frequencies[cut],
            offsets=self.offsets[cut],
            means=self.means[cut],
            forward=self.forward[cut],
            spreads=self.spreads[cut],
        )

    def fits(self, shape: KvShape) -> bool:
        return (shape.layers, shape.heads, shape.width) == (self.layers, self.heads, self.width)

    def contexts(self, step_quarters_t: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
        """The table of every symbol: (L, P, T, G * W) from each token's step."""
        steps, of_token = np.unique(step_quarters_t, return_inverse=True)
        classes = self.spreads.astype(np.int64)[:, :, None, :] - steps[:, None]
        by_step = (np.clip(classes, LOWEST_CLASS, HIGHEST_CLASS) - LOWEST_CLASS).astype(np.uint16)
        return np.asarray(by_step[:, :, of_token])


def parse_profile(data: bytes) -> KvProfile:
    """raises: MalformedPayload for bytes that `KvProfile.packed` did not write"""
    reader = ByteReader(unseal(data, "kv-profile", []))
    layers, heads, width, groups, half, flags, *steps = HEAD.unpack(reader.take(HEAD.size))
    channels = heads * width
    if not (layers and channels and groups and channels <= LARGEST_SIDE and flags <= TOGETHER | NEIGHBOURS):
        raise MalformedPayload("a profile of a shape that cannot be")
    if heads % groups or 2 * half > width:
        raise MalformedPayload("a profile whose groups or rotation do not fit its heads")
    parts = 1 if flags & TOGETHER else 2
    side = 2 * channels // (parts * groups)
    frequencies = reader.array("<f8", layers * half).astype(np.float64).reshape(layers, half)
    offsets = reader.array("<f4", layers * channels).astype(np.float32).reshape(layers, channels)
    means = reader.array("<f4", 2 * layers * channels).astype(np.float32).reshape(layers, 2, channels)
    count = parts * layers * groups * side * side
    forward = reader.array("<f2", count).astype(np.float16).reshape(layers, parts, groups, side, side)
    spreads = reader.array("i1", 2 * layers * channels).astype(np.int8).reshape(layers, parts, -1)
    rest = reader.take(reader.left)
    table, behind = parse_table(rest, 0, CLASSES, ALPHABET)
    finite = all(np.isfinite(array).all() for array in (frequencies, offsets, means, forward))
    if behind != len(rest) or not finite or not _is_usable(table):
        raise MalformedPayload("a profile with numbers that calibration does not write")
    profile = KvProfile(
        layers,
        heads,
        width,
        groups,
        bool(flags & TOGETHER),
        bool(flags & NEIGHBOURS),
        frequencies,
        offsets,
        means,
        forward,
        spreads,
        table,
        (steps[0], steps[1], steps[2]),
    )
    try:
        usable = bool(np.isfinite(profile.inverse_matrices).all())
    except np.linalg.LinAlgError:
        usable = False
    if not usable:
        raise MalformedPayload("a profile whose transform cannot be undone")
    return profile


def _is_usable(table: EntropyTable) -> bool:
    """Zero and the escape can be coded, and what can be coded is one symmetric stretch around zero."""
    frequencies = table.frequencies_cs
    positive = frequencies[:, ZERO:ESCAPE] > 0
    negative = frequencies[:, ZERO::-1] > 0
    whole = (positive == np.sort(positive, axis=1)[:, ::-1]).all()
    return bool(whole and (positive == negative).all() and frequencies[:, [ZERO, ESCAPE]].all())


def _coarse(frequencies: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Symbols 3b - 1, 3b, 3b + 1 fall into base b; -60 and 60 belong to -20 and 20."""
    padded = np.pad(frequencies[:, :ESCAPE], ((0, 0), (1, 1)))
    threes = padded.reshape(len(frequencies), -1, 3).sum(axis=2, dtype=np.uint32)
    return np.concatenate([threes, frequencies[:, ESCAPE:]], axis=1)


def _refinements(frequencies: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    padded = np.pad(frequencies[:, :ESCAPE], ((0, 0), (1, 1)))
    threes = padded.reshape(len(frequencies), -1, 3)
    middle = threes.shape[1] // 2
    outward = threes[:, middle:] + threes[:, middle::-1, ::-1]
    near, far = outward[:, :3], outward[:, 3:].sum(axis=1, keepdims=True)
    return np.concatenate([near, far], axis=1).reshape(-1, 3)
