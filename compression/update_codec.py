"""The seam between training and compression: a flat float32 update in, bytes out, and back.

An update is one vector: the parameters of a shard or a model in a fixed order. Both sides know its length, the preset
and the seed (the round); nothing else is taken from the bytes.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]


class Codec(Protocol):
    """Pure and deterministic: the same values and seed give the same bytes on every machine."""

    @property
    def name(self) -> str: ...

    def encode(self, values: Values, seed: int = 0) -> bytes:
        """values: (N,) float32. raises: ValueError for values that are not finite or not a vector"""
        ...

    def decode(self, data: bytes, count: int, seed: int = 0) -> Values:
        """(count,) float32, finite. raises: MalformedPayload"""
        ...


def checked_update(values: Values) -> Values:
    """raises: ValueError unless the values are a finite float32 vector"""
    if values.ndim != 1 or values.dtype != np.float32:
        raise ValueError(f"an update is a float32 vector, not {values.dtype} {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("an update with values that are not finite")
    return np.ascontiguousarray(values)
