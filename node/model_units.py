"""Which tensors of a checkpoint belong to which unit (embed, a layer, head), read from their names and shapes.

Works on the manifest alone: no weights, no torch. A head without a matrix of its own is tied to the embedding.
"""

import re
from math import prod

from shoal.swarm.errors import UsageError
from shoal.swarm.manifest import Manifest, TensorEntry
from shoal.swarm.units import Span

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_HEAD_MATRIX = re.compile(r"(?:lm_head|embed_out|output|out_proj|classifier)\b")
_IGNORED = re.compile(r"(?:rotary_emb\.inv_freq|masked_bias|attention\.bias)$")
_NUMBERS = {"float32": 4, "bfloat16": 2, "float16": 2}


def value_bytes(dtype: str) -> int:
    return _NUMBERS[dtype]


def tensors_of_units(manifest: Manifest) -> list[tuple[TensorEntry, ...]]:
    """One tuple per unit, embed first, head last; a tied embedding stands in both.

    raises: UsageError when a unit has no tensors
    """
    units: list[list[TensorEntry]] = [[] for _ in range(manifest.layers + 2)]
    for entry in manifest.tensors:
        layer = _LAYER.search(entry.name)
        if _IGNORED.search(entry.name):
            continue
        if layer:
            if int(layer[1]) < manifest.layers:  # extra layers are draft heads of the checkpoint, which nothing runs
                units[1 + int(layer[1])].append(entry)
        elif _is_matrix(entry) and not _HEAD_MATRIX.search(entry.name):
            units[0].append(entry)
        else:
            units[-1].append(entry)
    if not any(_is_matrix(entry) for entry in units[-1]):
        units[-1].extend(units[0])
    for unit, entries in enumerate(units):
        if not entries:
            raise UsageError(f"{manifest.name}: the checkpoint holds no tensors for unit {unit} of {len(units)}")
    return [tuple(unit) for unit in units]


def tensors_of(manifest: Manifest, span: Span) -> tuple[TensorEntry, ...]:
    """Each tensor once, sorted by name."""
    if span.stop > manifest.layers + 2:
        raise UsageError(
            f"{manifest.name} has {manifest.layers} layers; units [{span.start}, {span.stop}) are out of range"
        )
    found = {entry.name: entry for unit in tensors_of_units(manifest)[span.start : span.stop] for entry in unit}
    return tuple(found[name] for name in sorted(found))


def files_of(manifest: Manifest, span: Span) -> tuple[str, ...]:
    """The weight files that hold a tensor of the span."""
    return tuple(sorted({entry.file for entry in tensors_of(manifest, span)}))


def unit_bytes(manifest: Manifest, dtype: str) -> list[int]:
    """Memory of each unit's weights when held as `dtype`."""
    return [sum(prod(entry.shape) for entry in unit) * value_bytes(dtype) for unit in tensors_of_units(manifest)]


def _is_matrix(entry: TensorEntry) -> bool:
    return len(entry.shape) == 2
