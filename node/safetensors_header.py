"""The head of a safetensors file: which tensors it holds, of which shape, and whether the file is whole.

Layout: 8 bytes little endian with the header's length, the header in JSON, then the tensors back to back.
source: https://github.com/huggingface/safetensors#format
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from shoal.swarm.errors import UsageError

MAX_HEADER_BYTES = 100 << 20
VALUE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorPlace:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the end of the header
    stop: int


def header_length(first_8_bytes: bytes, file: str) -> int:
    """raises: UsageError naming the file"""
    length = int.from_bytes(first_8_bytes, "little")
    if len(first_8_bytes) != 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise UsageError(f"{file} is not a safetensors file or is corrupt: no readable header")
    return length


def parse_header(header: bytes, file: str, file_bytes: int) -> list[TensorPlace]:
    """The tensors of a file of `file_bytes` bytes.

    raises: UsageError naming the file when the header is corrupt or the file is shorter or longer than it says
    """
    try:
        entries = json.loads(header)
        places = [_place(name, entry) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(f"{file} is corrupt: its safetensors header cannot be read ({error})") from error
    at = 0
    for place in sorted(places, key=lambda place: place.start):
        bits = prod(place.shape) * VALUE_BITS[place.dtype]
        if place.start != at or (place.stop - place.start) * 8 != bits:
            raise UsageError(f"{file} is corrupt: tensor {place.name} does not lie where its header says")
        at = place.stop
    if 8 + len(header) + at != file_bytes:
        raise UsageError(
            f"{file} is truncated or corrupt: {file_bytes} bytes, its header describes {8 + len(header) + at}"
        )
    return places


def _place(name: str, entry: dict[str, Any]) -> TensorPlace:
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if entry["dtype"] not in VALUE_BITS:
        raise ValueError(f"unknown dtype {entry['dtype']!r}")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)):
        raise ValueError(f"tensor {name!r} has no sensible shape")
    return TensorPlace(name, entry["dtype"], shape, start, stop)


def read_header(path: Path) -> list[TensorPlace]:
    """raises: UsageError"""
    with path.open("rb") as file:
        length = header_length(file.read(8), path.name)
        header = file.read(length)
    if len(header) != length:
        raise UsageError(f"{path.name} is truncated: its header ends early")
    return parse_header(header, path.name, path.stat().st_size)
