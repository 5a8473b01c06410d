"""safetensors files written in one pass, tensor by tensor, with the hashes of their blocks; and read back whole.

A writer holds one tensor at a time, so a file may be larger than memory.
source of the format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.node.safetensors_header import VALUE_BITS, header_length, parse_header
from shoal.swarm.errors import UsageError
from shoal.swarm.transfer.block_transfer_listing import MIN_BLOCK_BYTES, BlockedFile

Array = npt.NDArray[Any]
Buffer = bytes | memoryview

DTYPE_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_NUMPY_NAMES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """dtype: safetensors' name, such as F32 or BF16"""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * VALUE_BITS[self.dtype] // 8


class BlockHasher:
    """sha256 of each block of a stream of bytes."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._blocks: list[bytes] = []
        self._digest = hashlib.sha256()
        self._in_block = 0
        self.size_bytes = 0

    def update(self, data: Buffer) -> None:
        view = memoryview(data)
        self.size_bytes += len(view)
        while len(view):
            part = view[: self._block_bytes - self._in_block]
            self._digest.update(part)
            self._in_block += len(part)
            view = view[len(part) :]
            if self._in_block == self._block_bytes:
                self._end_block()

    def finish(self) -> tuple[bytes, ...]:
        if self._in_block:
            self._end_block()
        return tuple(self._blocks)

    def _end_block(self) -> None:
        self._blocks.append(self._digest.digest())
        self._digest, self._in_block = hashlib.sha256(), 0


def write_tensors(
    path: Path,
    specs: Sequence[TensorSpec],
    data: Iterable[Buffer],
    metadata: Mapping[str, str] | None = None,
    block_bytes: int = MIN_BLOCK_BYTES,
) -> BlockedFile:
    """Write a new file and bring it to the disk. data: one little endian buffer for each of `specs`, in their order

    raises: OSError; ValueError when a buffer does not fit its spec
    """
    header = _header(specs, metadata)
    hasher = BlockHasher(block_bytes)
    with path.open("xb") as file:
        for part in (len(header).to_bytes(8, "little"), header):
            file.write(part)
            hasher.update(part)
        for spec, buffer in zip(specs, data, strict=True):
            view = memoryview(buffer).cast("B") if memoryview(buffer).nbytes else memoryview(b"")
            if len(view) != spec.size_bytes:
                raise ValueError(f"{len(view)} bytes for tensor {spec.name} of {spec.size_bytes}")
            file.write(view)
            hasher.update(view)
        file.flush()
        os.fsync(file.fileno())
    return BlockedFile(path.name, hasher.size_bytes, hasher.finish())


def write_arrays(path: Path, arrays: Mapping[str, Array], block_bytes: int = MIN_BLOCK_BYTES) -> BlockedFile:
    """As `write_tensors`, in the order of the mapping. raises: OSError, ValueError for a dtype without a name"""
    for name, array in arrays.items():
        if array.dtype.name not in DTYPE_NAMES:
            raise ValueError(f"{name} is of {array.dtype}, which a safetensors file cannot hold")
    specs = [TensorSpec(name, DTYPE_NAMES[array.dtype.name], array.shape) for name, array in arrays.items()]
    return write_tensors(path, specs, (_bytes_of(array) for array in arrays.values()), None, block_bytes)


def read_arrays(path: Path) -> dict[str, Array]:
    """Every tensor as an array of its own, in the order in which they lie in the file.

    raises: UsageError naming the file when it is truncated, corrupt or of a dtype that numpy lacks
    """
    try:
        with path.open("rb") as file:
            length = header_length(file.read(8), path.name)
            header = file.read(length)
            places = parse_header(header, path.name, path.stat().st_size)
            arrays = {}
            for place in sorted(places, key=lambda place: place.start):
                if place.dtype not in _NUMPY_NAMES:
                    raise UsageError(f"{path.name} holds {place.name} in {place.dtype}, which is not read here")
                array = np.empty(place.shape, np.dtype(_NUMPY_NAMES[place.dtype]).newbyteorder("<"))
                file.seek(8 + length + place.start)
                if array.nbytes and file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                    raise UsageError(f"{path.name} is truncated")
                arrays[place.name] = array
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read: {error.strerror or error}") from error
    return arrays


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for spec in specs:
        if spec.name in entries:
            raise ValueError(f"tensor {spec.name} twice")
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.size_bytes],
        }
        at += spec.size_bytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % _ALIGNMENT)


def _bytes_of(array: Array) -> Buffer:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data
