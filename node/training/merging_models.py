"""Several published models made into one, tensor by tensor: no more than one tensor of each model is in memory."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from shoal.node.manifest_builder import parse_config
from shoal.node.model_source import LocalModel
from shoal.swarm.errors import UsageError
from shoal.swarm.manifest import TensorEntry

from .checkpoints.tensor_file import Buffer, TensorSpec, write_tensors
from .merging import Merge
from .model_folder import new_folder, write_index, write_texts

Progress = Callable[[int, int], None]  # tensors done, tensors in all
_FREE_KEYS = {  # of config.json: they do not change what the weights mean
    "_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "attention_dropout", "initializer_range", "name_or_path",
}  # fmt: skip


def merge_models(
    models: Sequence[LocalModel],
    out: Path,
    merge: Merge,
    base: LocalModel | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a new folder with the layout, dtype, configuration and tokenizer of the base, or else of the first model.

    raises: UsageError (models that do not fit together, `out` exists, corrupt files), OutOfMemory
    """
    merge.check(len(models), base=base is not None)
    leader = base or models[0]
    for model in (*models, *([base] if base else [])):
        check_alike(leader, model)
    entries = leader.manifest.tensors
    specs = {entry.name: TensorSpec(entry.name, entry.dtype, entry.shape) for entry in entries}
    total_bytes = sum(spec.size_bytes for spec in specs.values())
    done = 0
    with new_folder(out, total_bytes) as folder, ExitStack() as files:
        readers = [_Reader(model, files) for model in models]
        base_reader = None if base is None else _Reader(base, files)

        def merged(entry: TensorEntry) -> Buffer:
            nonlocal done
            data = _merged(entry, readers, base_reader, merge)
            done += 1
            if progress is not None:
                progress(done, len(entries))
            return data

        names = sorted({entry.file for entry in entries})
        for name in names:
            held = [entry for entry in entries if entry.file == name]
            write_tensors(folder / name, [specs[e.name] for e in held], map(merged, held), {"format": "pt"})
        if names != ["model.safetensors"]:
            write_index(folder, {entry.name: entry.file for entry in entries}, total_bytes)
        write_texts(folder, {text.name: leader.text_file(text.name) for text in leader.manifest.texts})


def check_alike(leader: LocalModel, other: LocalModel) -> None:
    """raises: UsageError, one line that says what differs"""
    one, two = leader.manifest, other.manifest
    names = f"{one.name} and {two.name} cannot be merged"
    if (one.architecture, one.model_type) != (two.architecture, two.model_type):
        raise UsageError(f"{names}: one is a {one.architecture}, the other a {two.architecture}")
    if one.vocabulary != two.vocabulary:
        raise UsageError(f"{names}: one has a vocabulary of {one.vocabulary} tokens, the other of {two.vocabulary}")
    vocabularies = _vocabulary(leader), _vocabulary(other)
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise UsageError(f"{names}: their tokenizers have different vocabularies")
    ours, theirs = ({entry.name: entry.shape for entry in manifest.tensors} for manifest in (one, two))
    for name in sorted(ours.keys() ^ theirs.keys()):
        raise UsageError(f"{names}: only {(one if name in ours else two).name} has the tensor {name}")
    for name, shape in ours.items():
        if theirs[name] != shape:
            raise UsageError(f"{names}: {name} has another shape in each")
    first, second = (_config(model) for model in (leader, other))
    for key in sorted(first.keys() | second.keys()):
        if key not in _FREE_KEYS and first.get(key) != second.get(key):
            raise UsageError(
                f"{names}: {key} is {first.get(key)} in one config.json and {second.get(key)} in the other"
            )


class _Reader:
    """Tensors of one model by name."""

    def __init__(self, model: LocalModel, files: ExitStack) -> None:
        self._model, self._files = model, files
        self._opened: dict[str, Any] = {}
        self._places = {entry.name: entry.file for entry in model.manifest.tensors}

    def read(self, name: str) -> torch.Tensor:
        """raises: UsageError naming the file"""
        file = self._places[name]
        try:
            if file not in self._opened:
                opened = safe_open(self._model.folder / file, framework="pt", device="cpu")
                self._opened[file] = self._files.enter_context(opened)
            tensor: torch.Tensor = self._opened[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{file} of {self._model.manifest.name} cannot be read: {error}") from error
        return tensor


def _merged(entry: TensorEntry, readers: Sequence[_Reader], base: _Reader | None, merge: Merge) -> Buffer:
    held = [reader.read(entry.name) for reader in readers]
    root = None if base is None else base.read(entry.name)
    first = held[0] if root is None else root
    if not first.is_floating_point():
        if any(not torch.equal(first, tensor) for tensor in held):
            raise UsageError(f"{entry.name} holds whole numbers that differ, which no merge can mix")
        return _bytes(first)
    result = merge([tensor.float().clone() for tensor in held], None if root is None else root.float()).to(first.dtype)
    if not torch.isfinite(result).all():
        raise UsageError(f"{entry.name} becomes infinite or NaN; take other weights")
    return _bytes(result)


def _bytes(tensor: torch.Tensor) -> Buffer:
    flat: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return flat


def _config(model: LocalModel) -> dict[str, Any]:
    return parse_config(model.text_file("config.json"), "config.json")


def _vocabulary(model: LocalModel) -> object:
    """What a token id means: the tokenizer's vocabulary with its added tokens; None where there is no tokenizer."""
    if not any(text.name == "tokenizer.json" for text in model.manifest.texts):
        return None
    try:
        parsed = json.loads(model.text_file("tokenizer.json"))
        added = [(token["id"], token["content"]) for token in parsed.get("added_tokens") or []]
        return parsed["model"].get("vocab"), added
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"tokenizer.json of {model.manifest.name} is not readable: {error}") from error
