"""The reference of the config names every key, and its example is a config."""

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from shoal.node.training.config import TrainingConfig
from shoal.node.training.config_file import config_from

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference" / "training.md").read_text()


def keys(table: type[msgspec.Struct]) -> set[str]:
    found: set[str] = set()
    for field in msgspec.structs.fields(table):
        kind: Any = field.type
        found |= {field.name} | (keys(kind) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else set())
    return found


def test_every_key_is_in_the_reference() -> None:
    missing = {key for key in keys(TrainingConfig) if not re.search(rf"[`.\[]{key}[`\]]", REFERENCE)}
    assert missing == set()


def test_the_example_is_a_config() -> None:
    example = re.search(r"```toml\n(.*?)```", REFERENCE, re.DOTALL)
    assert example is not None
    config = config_from(tomllib.loads(example[1]), Path()).config
    assert (config.strategy.name, config.strategy.interval, config.rounds) == ("sparse", 30, 100)
