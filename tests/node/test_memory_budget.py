"""What fits into how much memory."""

import json
from pathlib import Path

import psutil
import pytest
import torch

from shoal.node.memory_budget import (
    available_bytes,
    fit,
    kv_bytes_from_config,
    kv_bytes_per_token,
    unit_sizes,
)
from shoal.node.memory_size import parse_size
from shoal.node.model_source import embedded_folder, resolve
from shoal.swarm.errors import OutOfMemory, UsageError
from shoal.swarm.units import Span

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("500MiB", 500 << 20), ("1.5 gib", 3 << 29), ("80%", 800), ("4096", 4096), ("2k", 2000)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text, free=1000) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "8 giga", "0", "120%", "1e9", "GB"])
def test_other_texts_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*$"):
        parse_size(text, free=1000)


def test_a_volunteer_who_names_no_limit_gives_a_share_of_what_is_free() -> None:
    free = psutil.virtual_memory().available
    assert 0.5 * free < available_bytes(None, CPU) < 0.9 * free


def test_nobody_gives_more_than_is_free() -> None:
    assert available_bytes("900TB", CPU) <= psutil.virtual_memory().total
    assert available_bytes("1MB", CPU) == 10**6


def test_a_cached_token_costs_keys_and_values_of_every_kv_head(tmp_path: Path) -> None:
    model = resolve("novels-6m", tmp_path)
    assert kv_bytes_per_token(model, "float32") == 2 * 2 * 64 * 4
    config = json.loads((embedded_folder() / "config.json").read_text())
    del config["head_dim"], config["num_key_value_heads"]
    assert kv_bytes_from_config(config, "bfloat16") == 2 * 256 * 2


def test_the_longest_span_that_fits_is_taken(tmp_path: Path) -> None:
    manifest = resolve("novels-6m", tmp_path).manifest
    sizes, kv = unit_sizes(manifest, "float32"), 1 << 20
    assert fit(manifest, "float32", 1 << 40, 0, kv) == Span(0, 10)
    assert fit(manifest, "float32", sizes[0] + 2 * (sizes[1] + kv), 0, kv) == Span(0, 3)
    assert fit(manifest, "float32", sizes[0] + 2 * (sizes[1] + kv) - 1, 0, kv) == Span(0, 2)
    assert fit(manifest, "bfloat16", sizes[4], 4, 0) == Span(4, 6)


def test_a_budget_for_not_even_one_unit_says_what_is_needed(tmp_path: Path) -> None:
    manifest = resolve("novels-6m", tmp_path).manifest
    with pytest.raises(OutOfMemory, match=r"one unit of novels-6m in float32 needs 4\.0 MiB, the budget is 1\.0 MiB"):
        fit(manifest, "float32", 1 << 20, 0, 0)
