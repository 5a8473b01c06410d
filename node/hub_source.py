"""A model from a Hugging Face hub: its manifest from metadata, and then only the weight files that a span needs.

Headers of safetensors files are read by range requests and their sha256 is the hub's own (git LFS), so the `model_id`
is that of a folder with the same files. What was brought before serves without network (HF_HUB_OFFLINE, or a hub that
is down).
"""

from pathlib import Path

import msgspec

from shoal.swarm.errors import MalformedMessage, OutOfMemory, Unavailable, UsageError
from shoal.swarm.manifest import MAX_TEXT_FILE_BYTES, TEXT_FILES, FileEntry, Manifest, decode, encode, model_id
from shoal.swarm.units import Span

from .folder_manifest import INDEX, choose_weight_files, indexed_files, text_entry
from .hub_files import HubFiles, RemoteFile, file_sha256
from .manifest_builder import build_manifest, parse_config
from .model_source import LocalModel, Progress
from .model_units import files_of
from .safetensors_header import TensorPlace, header_length, parse_header
from .tokenizer_conversion import OTHER_TOKENIZERS, converted_tokenizer

FIRST_READ_BYTES = 128 << 10  # holds the whole header of nearly all shard files


class _Known(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was learnt about a revision the last time that the hub could be reached."""

    commit: str
    manifest: bytes
    converted: bool  # the tokenizer.json of the manifest was made here


def from_hub(repository: str, home_cache: Path, revision: str = "main", progress: Progress | None = None) -> LocalModel:
    """raises: UsageError, Unavailable, OutOfMemory"""
    root = home_cache / "hub" / repository.replace("/", "--")
    record = root / f"{revision.replace('/', '--')}.msgpack"
    known = _read(record)
    try:
        hub = HubFiles.look_up(repository, revision)
    except Unavailable:
        if known is None:
            raise
        hub = HubFiles(repository, known.commit, {})
    folder = root / hub.commit
    tokenizers = home_cache / "tokenizers"
    if known is None or known.commit != hub.commit:
        manifest = _describe(hub, folder, tokenizers, progress)
        known = _Known(hub.commit, encode(manifest), not (folder / "tokenizer.json").is_file())
        _write(record, known)
    manifest = decode(known.manifest)
    text_folder = converted_tokenizer(folder, tokenizers) if known.converted else None

    def fetch(span: Span, progress: Progress | None) -> None:
        names = files_of(manifest, span)
        for entry in manifest.weights:
            if entry.name in names and not (folder / entry.name).is_file():  # a file under its own name was verified
                hub.download(entry, folder, progress)

    return LocalModel(folder, manifest, model_id(manifest), fetch, text_folder, "hub")


def kept_hub_models(home_cache: Path) -> list[LocalModel]:
    """Those that were brought here before, as they are now; nothing can be fetched for them."""
    found = []
    for record in sorted((home_cache / "hub").glob("*/*.msgpack")):
        known = _read(record)
        if known is not None:
            manifest = decode(known.manifest)
            found.append(LocalModel(record.parent / known.commit, manifest, model_id(manifest), origin="hub"))
    return found


def _describe(hub: HubFiles, folder: Path, tokenizers: Path, progress: Progress | None) -> Manifest:
    if "config.json" not in hub.files:
        raise UsageError(f"{hub.repository} has no config.json, so it is not a model that transformers can load")
    for name in (*TEXT_FILES, *OTHER_TOKENIZERS, INDEX):
        if name in hub.files:
            _bring_small(hub, hub.files[name], folder, progress)
    config = parse_config((folder / "config.json").read_bytes(), "config.json")
    generation = folder / "generation_config.json"
    names = indexed_files(folder, set(hub.files)) or choose_weight_files(list(hub.files), hub.repository)
    weights = [_weight_entry(hub, hub.files[name], folder, progress) for name in names]
    extra = converted_tokenizer(folder, tokenizers)
    texts = {text: folder / text for text in TEXT_FILES if (folder / text).is_file()}
    if extra is not None:
        texts["tokenizer.json"] = extra / "tokenizer.json"
    return build_manifest(
        hub.repository,
        config,
        parse_config(generation.read_bytes(), generation.name) if generation.is_file() else {},
        {name: _header(hub, hub.files[name]) for name in names},
        weights,
        [text_entry(text, path.read_bytes()) for text, path in texts.items()],
        {},
    )


def _header(hub: HubFiles, file: RemoteFile) -> list[TensorPlace]:
    first = hub.read(file.name, 0, min(FIRST_READ_BYTES, file.size_bytes))
    length = header_length(first[:8], file.name)
    header = first[8 : 8 + length]
    if len(header) < length:
        if 8 + length > file.size_bytes:
            raise UsageError(f"{file.name} of {hub.repository} is corrupt: its header is longer than the file")
        header += hub.read(file.name, len(first), 8 + length)
    return parse_header(header, file.name, file.size_bytes)


def _weight_entry(hub: HubFiles, file: RemoteFile, folder: Path, progress: Progress | None) -> FileEntry:
    if file.sha256 is None:  # small weights committed to git without LFS
        return _bring_small(hub, file, folder, progress)
    return FileEntry(file.name, file.size_bytes, file.sha256)


def _bring_small(hub: HubFiles, file: RemoteFile, folder: Path, progress: Progress | None) -> FileEntry:
    """Download a file that has to be here whole before its hash is known."""
    if file.size_bytes > MAX_TEXT_FILE_BYTES:
        raise UsageError(f"{file.name} of {hub.repository} has {file.size_bytes} bytes and no published sha256")
    if not (folder / file.name).is_file():
        if file.sha256 is not None:
            hub.download(FileEntry(file.name, file.size_bytes, file.sha256), folder, progress)
        else:
            content = hub.read(file.name, 0, file.size_bytes) if file.size_bytes else b""
            _write_bytes(folder / file.name, content)
    return FileEntry(file.name, file.size_bytes, file_sha256(folder / file.name))


def _read(record: Path) -> _Known | None:
    try:
        known = msgspec.msgpack.decode(record.read_bytes(), type=_Known)
        decode(known.manifest)
    except (OSError, msgspec.MsgspecError, MalformedMessage):
        return None
    return known


def _write(record: Path, known: _Known) -> None:
    _write_bytes(record, msgspec.msgpack.encode(known))


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise OutOfMemory(f"cannot write {path}: {error.strerror}") from error
