"""How much of a model fits: what the user allows, what the machine has, what a unit and a cached token cost."""

from collections.abc import Mapping
from typing import Any

import psutil
import torch

from shoal.swarm.errors import OutOfMemory, UsageError
from shoal.swarm.manifest import Manifest
from shoal.swarm.units import Span

from .manifest_builder import parse_config
from .memory_size import parse_size
from .model_source import LocalModel
from .model_units import unit_bytes, value_bytes

DEFAULT_SHARE = 0.7  # of the memory that is free, for a volunteer who names no limit


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses now, on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def available_bytes(text: str | None, device: torch.device) -> int:
    """The budget from `--max-memory`, or DEFAULT_SHARE of what is free; never more than is free.

    raises: UsageError
    """
    free = free_bytes(device)
    return min(free, parse_size(text, free)) if text else int(free * DEFAULT_SHARE)


def unit_sizes(manifest: Manifest, dtype: str) -> tuple[int, ...]:
    """Bytes of each unit in memory, embed first and head last; a tied head holds its own copy of the matrix."""
    return tuple(unit_bytes(manifest, dtype))


def kv_bytes_per_token(model: LocalModel, dtype: str) -> int:
    """Keys and values of one position in one layer."""
    return kv_bytes_from_config(parse_config(model.text_file("config.json"), "config.json"), dtype)


def kv_bytes_from_config(config: Mapping[str, Any], dtype: str) -> int:
    """raises: UsageError when the configuration names no heads"""
    heads = config.get("num_attention_heads") or config.get("n_head")
    hidden = config.get("hidden_size") or config.get("n_embd")
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        raise UsageError("config.json names no attention heads")
    width = config.get("head_dim") or hidden // heads
    return 2 * int(config.get("num_key_value_heads") or heads) * int(width) * value_bytes(dtype)


def fit(manifest: Manifest, dtype: str, budget: int, start: int, kv_bytes_per_layer: int) -> Span:
    """The longest span from unit `start` on that fits in `budget` bytes, KV cache included.

    raises: OutOfMemory when not even that unit fits
    """
    sizes = unit_sizes(manifest, dtype)
    cost, stop = 0, start
    while stop < len(sizes):
        cost += sizes[stop] + (kv_bytes_per_layer if 0 < stop < len(sizes) - 1 else 0)
        if cost > budget:
            break
        stop += 1
    if stop == start:
        raise OutOfMemory(
            f"one unit of {manifest.name} in {dtype} needs {_mebibytes(cost)}, the budget is {_mebibytes(budget)}; "
            "raise --max-memory or choose a smaller dtype"
        )
    return Span(start, stop)


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
