"""Whether a chunk that lost something can have come of a cache that is known here: what rounding cannot explain of it.

Every component of an honest chunk lies within half a step of the true one, whatever the model, the profile and the
level. So what lies beyond half a step is no rounding, and the profile itself bounds what a level may lose. Errors are
weighed as the profile weighs them: by what they cost the model's output.
"""

import math

import numpy as np

from .kv_block import KvBlock, KvShape
from .kv_profile import KvProfile
from .kv_transform import LayerTransform


def unexplained_distance(mine: KvBlock, claimed: KvBlock, profile: KvProfile, step_quarters: int) -> float:
    """How far `claimed` is from `mine` beyond the rounding of its step, in units of how far a chunk is that says
    nothing (all components zero): 0 for any honest one, about 1 for nothing, more for another text.

    Blocks of one shape; without a single component beyond half a step everything but noise is alike, and the unit is
    one step. Numbers beyond all measure are infinitely far.

    raises: ValueError when the profile is not for this shape
    """
    shape = mine.shape
    if claimed.shape != shape or not profile.fits(shape):
        raise ValueError("blocks of another shape than the profile's, or than each other's")
    scale = np.float32(2.0 ** (-step_quarters / 4))
    transforms = [_transform(profile, shape) for _ in range(2)]
    beyond = nothing = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in range(shape.layers):
            ours, theirs = (
                transform.forward(layer, block.keys[layer], block.values[layer]) * scale
                for transform, block in zip(transforms, (mine, claimed), strict=True)
            )
            beyond += _squares(ours - theirs)
            nothing += _squares(ours)
    distance = math.sqrt(beyond) / max(1.0, math.sqrt(nothing))
    return distance if math.isfinite(distance) else math.inf


def _transform(profile: KvProfile, shape: KvShape) -> LayerTransform:
    transform = LayerTransform(profile, profile.offsets, shape.tokens, shape.dtype)
    transform.move(shape)
    return transform


def _squares(steps: np.ndarray) -> float:
    """Of what is beyond half a step."""
    return float(np.square(np.maximum(np.abs(steps) - 0.5, 0.0), dtype=np.float64).sum())
