"""The float part of the `shoal` KV codec: blocks to decorrelated, sensitivity-weighted components and back.

Shape letters as in kv_profile; a component array is (2, L, T, C), keys first.
"""

import numpy as np
import numpy.typing as npt

from .acceleration import wants_numba
from .kv_block import KvBlock, Stored, from_floats, to_floats
from .kv_profile import Floats, KvProfile
from .rotary import rotate, rotation


def to_components(profile: KvProfile, block: KvBlock, accelerate: bool | None = None) -> Floats:
    """(2, L, T, C) float32; not finite where the block is not."""
    shape = block.shape
    cosines, sines = rotation(profile.inverse_frequencies, shape.positions)
    flat = (shape.layers, shape.tokens, profile.channels)
    centred = np.empty((2, *flat), np.float32)
    if shape.dtype == "bfloat16" and wants_numba(accelerate):
        from . import kv_numba

        bits = [np.ascontiguousarray(array, np.uint16).reshape(flat) for array in (block.keys, block.values)]
        still = np.empty((shape.tokens, 0), np.float32)
        kv_numba.centre(bits[0], profile.offsets, cosines, sines, profile.means[0], shape.width, centred[0])
        kv_numba.centre(
            bits[1], np.zeros_like(profile.offsets), still, still, profile.means[1], shape.width, centred[1]
        )
    else:
        offsets = profile.offsets.reshape(shape.layers, 1, shape.heads, shape.width)
        keys = rotate(to_floats(block.keys, shape.dtype) - offsets, cosines, -sines)
        np.subtract(keys.reshape(flat), profile.means[0, :, None], out=centred[0])
        values = to_floats(block.values, shape.dtype).reshape(flat)
        np.subtract(values, profile.means[1, :, None], out=centred[1])
    with np.errstate(over="ignore", invalid="ignore"):
        return _grouped_product(profile, centred, profile.forward_matrices)


def from_components(
    profile: KvProfile,
    components: Floats,
    dtype: str,
    positions: npt.NDArray[np.int64],
    accelerate: bool | None = None,
) -> tuple[Stored, Stored]:
    """Keys and values (L, T, C) nearest to these components in the stored type, finite.

    positions: of each of the T tokens
    """
    cosines, sines = rotation(profile.inverse_frequencies, positions)
    centred = _grouped_product(profile, components, profile.inverse_matrices)
    if dtype == "bfloat16" and wants_numba(accelerate):
        from . import kv_numba

        stored = np.empty(centred.shape, "<u2")
        still, nothing = np.empty((len(positions), 0), np.float32), np.zeros_like(profile.offsets)
        width = profile.width
        kv_numba.restore(centred[0], profile.means[0], cosines, sines, profile.offsets, width, stored[0])
        kv_numba.restore(centred[1], profile.means[1], still, still, nothing, width, stored[1])
        return stored[0], stored[1]
    centred += profile.means[:, :, None]
    heads = (profile.layers, len(positions), profile.heads, profile.width)
    keys = rotate(centred[0].reshape(heads), cosines, sines).reshape(centred[0].shape) + profile.offsets[:, None]
    limit = np.finfo(np.float32).max
    return from_floats(np.clip(keys, -limit, limit), dtype), from_floats(np.clip(centred[1], -limit, limit), dtype)


def _grouped_product(profile: KvProfile, rows: Floats, matrices: Floats) -> Floats:
    """rows (2, L, T, C) times one matrix per kind, layer and group."""
    groups, side = profile.groups, profile.group_width
    if groups == 1:
        return np.asarray(np.matmul(rows, matrices[:, :, 0]))
    split = rows.reshape(*rows.shape[:3], groups, side).transpose(0, 1, 3, 2, 4)
    products = np.empty_like(rows)
    # Written through a view, so that every group's product lands in its place without a copy.
    np.matmul(split, matrices, out=products.reshape(*rows.shape[:3], groups, side).transpose(0, 1, 3, 2, 4))
    return products
