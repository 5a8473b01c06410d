"""The manifest of a folder of files, hashed once and kept until a file changes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from shoal.swarm.errors import MalformedMessage, OutOfMemory, UsageError
from shoal.swarm.manifest import (
    ADAPTER_CONFIG,
    CHUNK_BYTES,
    MAX_TEXT_FILE_BYTES,
    TEXT_FILES,
    FileEntry,
    Manifest,
    decode,
    encode,
)

from .manifest_builder import build_adapter_manifest, build_manifest, parse_config
from .safetensors_header import read_header
from .tokenizer_conversion import converted_tokenizer

Progress = Callable[[str, int, int], None]
INDEX = "model.safetensors.index.json"


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was seen when the manifest was made."""

    seen: dict[str, tuple[int, int]]  # file -> size in bytes, modification time in ns
    manifest: bytes


def weight_files(folder: Path) -> list[str]:
    """raises: UsageError when there are none, or only pickles"""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    return indexed_files(folder, names) or choose_weight_files(sorted(names), str(folder))


def indexed_files(folder: Path, present: set[str]) -> list[str]:
    """The weight files that the folder's index names; [] without an index.

    raises: UsageError when the index is corrupt or a file it names is not among `present`
    """
    if not (folder / INDEX).is_file():
        return []
    weight_map = parse_config((folder / INDEX).read_bytes(), INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise UsageError(f"{INDEX} in {folder} is corrupt: it has no weight_map")
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if file not in present]
    if missing:
        raise UsageError(f"{folder} lacks {missing[0]}, which {INDEX} names")
    return files


def choose_weight_files(names: list[str], where: str) -> list[str]:
    """Which of a folder's files hold the weights when no index says so.

    raises: UsageError
    """
    tensors = sorted(name for name in names if name.endswith(".safetensors"))
    if "model.safetensors" in tensors:
        return ["model.safetensors"]
    if len(tensors) == 1:
        return tensors
    if tensors:
        raise UsageError(f"{where} holds several .safetensors files and no {INDEX} that says which belong together")
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        raise UsageError(f"{where} has only pickled weights, which can run code; shoal reads .safetensors")
    raise UsageError(f"{where} has no .safetensors weights")


def folder_manifest(
    folder: Path, name: str, kept_in: Path, tokenizers: Path, progress: Progress | None = None
) -> tuple[Manifest, Path | None]:
    """The manifest, and the folder of a converted tokenizer.json when the model's own folder has none.

    raises: UsageError, OutOfMemory (no room to keep the manifest)
    """
    adapter = _is_adapter(folder)
    if not adapter and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} has no config.json, so it is not a Hugging Face model folder")
    weights = weight_files(folder)
    extra = None if adapter else converted_tokenizer(folder, tokenizers)
    texts = {text: folder / text for text in TEXT_FILES if (folder / text).is_file()}
    if extra is not None:
        texts["tokenizer.json"] = extra / "tokenizer.json"
    paths = {name: folder / name for name in weights} | texts
    seen = {file: (path.stat().st_size, path.stat().st_mtime_ns) for file, path in paths.items()}
    record = kept_in / (hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32] + ".msgpack")
    manifest = _read_kept(record, seen)
    if manifest is None:
        manifest = _hash(folder, name, weights, texts, progress)
        _write_kept(record, _Kept(seen, encode(manifest)))
    return msgspec.structs.replace(manifest, name=name), extra


def _hash(folder: Path, name: str, weights: list[str], texts: dict[str, Path], progress: Progress | None) -> Manifest:
    places = {
        file: read_header(folder / file) for file in weights
    }  # fails on a truncated file before hashing for minutes
    total, done = sum((folder / file).stat().st_size for file in weights), 0
    entries: list[FileEntry] = []
    chunks: dict[str, tuple[str, ...]] = {}
    for file in weights:
        digest, parts = hashlib.sha256(), []
        with (folder / file).open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                parts.append(hashlib.sha256(chunk).hexdigest())
                done += len(chunk)
                if progress:
                    progress(f"hashing {file}", done, total)
        entries.append(FileEntry(file, (folder / file).stat().st_size, digest.hexdigest()))
        chunks[file] = tuple(parts)
    small = [text_entry(text, path.read_bytes()) for text, path in texts.items()]
    if _is_adapter(folder):
        config = parse_config((folder / ADAPTER_CONFIG).read_bytes(), ADAPTER_CONFIG)
        return build_adapter_manifest(name, config, places, entries, small, chunks)
    generation = folder / "generation_config.json"
    return build_manifest(
        name,
        parse_config((folder / "config.json").read_bytes(), "config.json"),
        parse_config(generation.read_bytes(), generation.name) if generation.is_file() else {},
        places,
        entries,
        small,
        chunks,
    )


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def text_entry(name: str, content: bytes) -> FileEntry:
    """raises: UsageError when a small file is not small"""
    if len(content) > MAX_TEXT_FILE_BYTES:
        raise UsageError(f"{name} has {len(content)} bytes, more than {MAX_TEXT_FILE_BYTES}")
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest())


def _read_kept(record: Path, seen: dict[str, tuple[int, int]]) -> Manifest | None:
    try:
        kept = msgspec.msgpack.decode(record.read_bytes(), type=_Kept)
        return decode(kept.manifest) if kept.seen == seen else None
    except (OSError, msgspec.MsgspecError, MalformedMessage):
        return None  # absent, or written by another version: hash again


def _write_kept(record: Path, kept: _Kept) -> None:
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        part = record.with_suffix(".part")
        part.write_bytes(msgspec.msgpack.encode(kept))
        part.replace(record)
    except OSError as error:
        raise OutOfMemory(f"cannot keep the manifest in {record.parent}: {error.strerror}") from error
