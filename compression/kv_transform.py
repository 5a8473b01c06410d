"""The float part of the `shoal` KV codec: a layer's keys and values to uncorrelated, weighted components and back.

Some hundred tokens of one layer at a time, in arrays that are used again for every layer and so stay in the
processor's cache. Shape letters as in `kv_profile`, P parts, T tokens; a row holds the channels of one part.
"""

from collections.abc import Sequence

import numpy as np

from .acceleration import wants_numba
from .kv_block import KvShape, Stored, from_floats, to_floats
from .kv_profile import Floats, KvProfile
from .rotary import rotate

# Values of a layer's keys worked on at once: 512 KB of float32.
WINDOW_VALUES = 1 << 17
DEPTH_UNIT = 16


def window_chunks(profile: KvProfile, tokens: int) -> int:
    """How many chunks of so many tokens make a window."""
    return max(1, WINDOW_VALUES // (tokens * profile.channels))


class LayerTransform:
    """For windows of up to `tokens` tokens; `move` names the window. What `forward` returns lasts until its next call.

    offsets: (L, C), those of the profile or others
    """

    def __init__(
        self, profile: KvProfile, offsets: Floats, tokens: int, dtype: str, accelerate: bool | None = None
    ) -> None:
        self._profile = profile
        self._offsets = offsets
        self._dtype = dtype
        self._compiled = dtype == "bfloat16" and wants_numba(accelerate)
        self._rows = np.empty((profile.parts, tokens, profile.part_channels), np.float32)
        self._components = np.empty_like(self._rows)

    def move(self, window: KvShape) -> None:
        self._tokens = window.tokens
        self._turns = self._profile.turns(window.first_position, window.tokens)
        unturned = np.empty((window.tokens, 0), np.float32)
        self._still = (np.zeros(self._profile.channels, np.float32), unturned, unturned)

    @property
    def components(self) -> Floats:
        """(P, T, C) of the window: what `forward` fills and `inverse` reads."""
        return self._components[:, : self._tokens]

    def forward(self, layer: int, keys: Stored, values: Stored) -> Floats:
        """keys, values: (T, H, D) in the stored type. returns: components; not finite where the input is not"""
        rows = self._rows[:, : self._tokens]
        for kind, stored in enumerate((keys[..., self._profile.key_order], values)):
            (self._centre_compiled if self._compiled else self._centre)(layer, kind, stored)
        with np.errstate(over="ignore", invalid="ignore"):
            for part, matrices in enumerate(self._profile.forward_matrices[layer]):
                _grouped_product(rows[part], matrices, self.components[part], self._profile.group_width)
        return self.components

    def inverse(self, layer: int, depths: Sequence[int], keys: Stored, values: Stored) -> None:
        """Write the keys and values nearest to `components`, in the stored type and finite, into (T, H, D) arrays.

        depths: of each part, how many of the first channels of each group are to be read; the others are zero
        """
        rows = self._rows[:, : self._tokens]
        with np.errstate(over="ignore", invalid="ignore"):
            for part, matrices in enumerate(self._profile.inverse_matrices[layer]):
                # Whole vectors of the processor: what they hold more is zero.
                depth = min(-(-depths[part] // DEPTH_UNIT) * DEPTH_UNIT, self._profile.group_width)
                _grouped_product(self.components[part], matrices, rows[part], depth)
        ordered = np.empty(keys.shape, keys.dtype) if self._profile.neighbours else keys
        for kind, stored in enumerate((ordered, values)):
            (self._restore_compiled if self._compiled else self._restore)(layer, kind, stored)
        if self._profile.neighbours:
            keys[..., self._profile.key_order] = ordered

    def _position(self, layer: int, kind: int) -> tuple[Floats, Floats, Floats]:
        """Offset, cosines and sines of keys (kind 0); values have none."""
        return (self._offsets[layer], self._turns[0][layer], self._turns[1][layer]) if kind == 0 else self._still

    def _columns(self, kind: int) -> tuple[Floats, int]:
        """The rows that hold keys or values, and where in each group they begin."""
        rows = self._rows[:, : self._tokens]
        return (rows[0], kind * self._profile.kind_width) if self._profile.together else (rows[kind], 0)

    def _grouped(self, kind: int) -> Floats:
        """(T, G, channels of a group) of one kind, a view of the rows."""
        rows, skipped = self._columns(kind)
        groups = rows.reshape(self._tokens, self._profile.groups, self._profile.group_width)
        return np.asarray(groups[:, :, skipped : skipped + self._profile.kind_width])

    def _centre(self, layer: int, kind: int, stored: Stored) -> None:
        offset, cosines, sines = self._position(layer, kind)
        floats = to_floats(stored, self._dtype)
        if kind == 0:
            floats -= offset.reshape(floats.shape[1:])
        floats = rotate(floats, cosines, -sines)
        grouped = self._grouped(kind)
        means = self._profile.means[layer, kind].reshape(grouped.shape[1:])
        np.subtract(floats.reshape(grouped.shape), means, out=grouped)

    def _restore(self, layer: int, kind: int, stored: Stored) -> None:
        offset, cosines, sines = self._position(layer, kind)
        grouped = self._grouped(kind)
        floats = (grouped + self._profile.means[layer, kind].reshape(grouped.shape[1:])).reshape(stored.shape)
        floats = rotate(floats, cosines, sines)
        if kind == 0:
            floats += offset.reshape(floats.shape[1:])
        if self._dtype != "bfloat16":
            np.nan_to_num(floats, copy=False)
        stored[...] = from_floats(floats, self._dtype)

    def _centre_compiled(self, layer: int, kind: int, stored: Stored) -> None:
        from . import kv_numba

        profile, (rows, skipped) = self._profile, self._columns(kind)
        bits = np.ascontiguousarray(stored, np.uint16).reshape(self._tokens, -1)
        layout = (profile.width, profile.kind_width, profile.group_width, skipped)
        kv_numba.centre(bits, *self._position(layer, kind), profile.means[layer, kind], *layout, rows)

    def _restore_compiled(self, layer: int, kind: int, stored: Stored) -> None:
        from . import kv_numba

        profile, (rows, skipped) = self._profile, self._columns(kind)
        bits = stored.view(np.uint16).reshape(self._tokens, -1)
        layout = (profile.width, profile.kind_width, profile.group_width, skipped)
        kv_numba.restore(rows, *self._position(layer, kind), profile.means[layer, kind], *layout, bits)


def _grouped_product(rows_tc: Floats, matrices_gww: Floats, out_tc: Floats, depth: int) -> None:
    """The first `depth` columns of each group times as many rows of its matrix."""
    groups, side = matrices_gww.shape[:2]
    if groups == 1:
        np.matmul(rows_tc[:, :depth], matrices_gww[0, :depth], out=out_tc)
    else:
        # Through views, so that every group's product lands in its place without a copy.
        split, target = (array.reshape(-1, groups, side).transpose(1, 0, 2) for array in (rows_tc, out_tc))
        np.matmul(split[:, :, :depth], matrices_gww[:, :depth], out=target)
