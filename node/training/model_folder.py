"""A Hugging Face folder written whole or not at all: built beside its place, brought to the disk, then renamed."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from shoal.swarm.errors import OutOfMemory, UsageError
from shoal.swarm.manifest import KV_PROFILE

from .checkpoints.tensor_file import Buffer, TensorSpec, write_tensors

INDEX = "model.safetensors.index.json"
MAX_FILE_BYTES = 4 << 30  # larger models are written in several files
SPARE_BYTES = 16 << 20  # disk that is left free
_METADATA = {"format": "pt"}  # transformers asks for it


@contextmanager
def new_folder(out: Path, total_bytes: int) -> Iterator[Path]:
    """A folder to write into that becomes `out` when the context is left without an error, and vanishes otherwise.

    raises: UsageError when `out` exists; OutOfMemory when the disk is full or cannot be written
    """
    if out.exists():
        raise UsageError(f"{out} exists already; name a folder that does not")
    part = out.with_name(f".{out.name}.partial-{secrets.token_hex(6)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if total_bytes + SPARE_BYTES > free:
            raise OutOfMemory(f"{total_bytes >> 20} MiB do not fit: {out.parent} has {free >> 20} MiB free")
        part.mkdir()
        yield part
        for path in [*part.iterdir(), part]:
            _sync(path)
        part.rename(out)
        _sync(out.parent)
    except OSError as error:
        raise OutOfMemory(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_weights(
    folder: Path,
    specs: Sequence[TensorSpec],
    data_of: Callable[[TensorSpec], Buffer],
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """model.safetensors, or numbered files and their index; one tensor is in memory at a time. raises: OSError"""
    groups: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if groups[-1] and sum(held.size_bytes for held in groups[-1]) + spec.size_bytes > max_file_bytes:
            groups.append([])
        groups[-1].append(spec)
    if len(groups) == 1:
        write_tensors(folder / "model.safetensors", specs, map(data_of, specs), _METADATA)
        return
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_tensors(folder / name, group, map(data_of, group), _METADATA)
        weight_map |= {spec.name: name for spec in group}
    total = sum(spec.size_bytes for spec in specs)
    write_index(folder, weight_map, total)


def write_index(folder: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_texts(folder: Path, texts: Mapping[str, bytes]) -> None:
    """All but a KV profile, which belongs to the weights that it was calibrated on."""
    for name, content in texts.items():
        if name != KV_PROFILE:
            (folder / name).write_bytes(content)


def with_dtype(config: bytes, dtype: str) -> bytes:
    """config.json of the same model in another dtype: float32, bfloat16, float16."""
    parsed = json.loads(config)
    parsed.pop("torch_dtype", None)
    parsed["dtype"] = dtype
    return json.dumps(parsed, indent=2).encode() + b"\n"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
