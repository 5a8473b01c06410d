"""A cursor over received bytes that never reads past their end."""

import struct

import numpy as np
import numpy.typing as npt

from .errors import MalformedPayload


class ByteReader:
    """Takes pieces from the front; `close` insists that nothing is left. raises: MalformedPayload"""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._offset = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._offset

    def take(self, count: int) -> memoryview:
        if count < 0 or count > self.left:
            raise MalformedPayload(f"{self.left} bytes are left where {count} are due")
        piece = self._data[self._offset : self._offset + count]
        self._offset += count
        return piece

    def give_back(self, count: int) -> None:
        """Undo the taking of the last `count` bytes."""
        self._offset -= count

    def number(self, code: str) -> int:
        """One little endian integer by its struct code."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def array(self, dtype: str, count: int) -> "npt.NDArray[np.generic]":
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(count * kind.itemsize), kind)

    def close(self) -> None:
        if self.left:
            raise MalformedPayload(f"{self.left} bytes too many")
