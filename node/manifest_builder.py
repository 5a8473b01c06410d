"""Build a model's manifest from its configuration, its safetensors headers and the hashes of its files."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from shoal.swarm.errors import UsageError
from shoal.swarm.manifest import ADAPTER, FileEntry, Manifest, TensorEntry

from .safetensors_header import TensorPlace

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
MAX_UNITS = 4096


def build_manifest(
    name: str,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    tensors: Mapping[str, Iterable[TensorPlace]],
    weights: Iterable[FileEntry],
    texts: Iterable[FileEntry],
    chunks: Mapping[str, tuple[str, ...]],
) -> Manifest:
    """tensors: by shard file.

    raises: UsageError in one line when the configuration does not describe a causal language model that can be served
    """
    if "quantization_config" in config:
        raise UsageError(f"{name} is a quantised checkpoint; shoal serves float32, bfloat16 and float16 weights")
    entries = _entries(name, tensors)
    layers = _number(config, name, "num_hidden_layers", "n_layer", "num_layers")
    if layers > MAX_UNITS:
        raise UsageError(f"{name} claims {layers} layers")
    return Manifest(
        name=name,
        architecture=str((config.get("architectures") or [""])[0]),
        model_type=str(config.get("model_type", "")),
        layers=layers,
        hidden=_number(config, name, "hidden_size", "n_embd", "d_model"),
        vocabulary=_number(config, name, "vocab_size"),
        max_context=_number(config, name, *_LENGTH_KEYS),
        dtype=_dtype(name, entries),
        tensors=entries,
        weights=tuple(sorted(weights, key=lambda file: file.name)),
        texts=tuple(sorted(texts, key=lambda file: file.name)),
        eos_ids=_eos_ids(config, generation_config),
        chunks=dict(chunks),
    )


def build_adapter_manifest(
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Iterable[TensorPlace]],
    weights: Iterable[FileEntry],
    texts: Iterable[FileEntry],
    chunks: Mapping[str, tuple[str, ...]],
) -> Manifest:
    """Of an adapter (LoRA and its like), which travels as a model does and is not served. raises: UsageError"""
    entries = _entries(name, tensors)
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise UsageError(f"{name} is no adapter that shoal can carry: its adapter_config.json has no peft_type")
    return Manifest(
        name=name,
        architecture=kind,
        model_type=ADAPTER,
        layers=0,
        hidden=0,
        vocabulary=0,
        max_context=0,
        dtype=_dtype(name, entries),
        tensors=entries,
        weights=tuple(sorted(weights, key=lambda file: file.name)),
        texts=tuple(sorted(texts, key=lambda file: file.name)),
        chunks=dict(chunks),
    )


def parse_config(text: bytes, file: str) -> dict[str, Any]:
    """raises: UsageError when the text is not a JSON object"""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{file} does not hold a JSON object")
    return config


def _entries(name: str, tensors: Mapping[str, Iterable[TensorPlace]]) -> tuple[TensorEntry, ...]:
    found: dict[str, TensorEntry] = {}
    for file, places in tensors.items():
        for place in places:
            if place.name in found:
                raise UsageError(f"{name}: tensor {place.name} is in both {found[place.name].file} and {file}")
            found[place.name] = TensorEntry(place.name, place.dtype, place.shape, file)
    if not found:
        raise UsageError(f"{name} holds no tensors")
    return tuple(found[key] for key in sorted(found))


def _number(config: Mapping[str, Any], name: str, *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    raise UsageError(f"{name} is not a causal language model that shoal can serve: its config.json has no {keys[0]}")


def _dtype(name: str, entries: tuple[TensorEntry, ...]) -> str:
    """The dtype of most of the weights."""
    values = Counter[str]()
    for entry in entries:
        values[entry.dtype] += prod(entry.shape)
    most = values.most_common(1)[0][0]
    if most not in _DTYPES:
        raise UsageError(f"{name} holds {most} weights; shoal serves float32, bfloat16 and float16 checkpoints")
    return _DTYPES[most]


def _eos_ids(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """generation_config.json says better than config.json where a text ends (chat models end turns)."""
    for source in (generation_config, config):
        ids = source.get("eos_token_id")
        if isinstance(ids, int) and not isinstance(ids, bool):
            return (ids,)
        if isinstance(ids, list) and ids and all(isinstance(i, int) for i in ids):
            return tuple(sorted(set(ids)))
    return ()
