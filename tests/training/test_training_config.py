import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training.tiny_run import as_toml, tiny_tables

from shoal.node.training.config_file import config_from, read_config
from shoal.swarm.errors import UsageError

SMALLEST: dict[str, Any] = {"name": "novels", "data": {"files": ["books"]}}


def complaint(tables: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as raised:
        config_from(tables, Path())
    return str(raised.value)


def test_a_name_and_files_are_enough() -> None:
    found = config_from(SMALLEST, Path())
    assert found.config.model == "novels-6m"
    assert found.config.strategy.name == "sparse"
    assert found.config.group.quorum == 2
    assert found.auto == ()


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"name": "x"}, "data is missing"),
        ({"name": "x", "data": {}}, "data.files is missing"),
        ({"name": "x", "data": {"files": []}}, "data.files names no file or folder"),
        ({**SMALLEST, "round": 3}, "the config has no key 'round'; did you mean 'rounds'?"),
        ({**SMALLEST, "banana": 3}, "the config has no key 'banana'; remove the line"),
        (
            {"name": "x", "data": {"files": ["a"], "sequnce": 3}},
            "the table [data] has no key 'sequnce'; did you mean 'sequence'?",
        ),
        ({**SMALLEST, "rounds": "many"}, "rounds: expected a whole number, got a string"),
        ({"name": "x", "data": {"files": "books"}}, "data.files: expected a list, got a string"),
        (
            {**SMALLEST, "batch": {"checkpointing": 1}},
            "batch.checkpointing: expected true or false, got a whole number",
        ),
        ({**SMALLEST, "batch": {"sequences": 0}}, "batch.sequences: expected a whole number >= 1"),
        ({**SMALLEST, "batch": {"precision": "fp8"}}, "batch.precision: invalid enum value 'fp8'"),
        ({**SMALLEST, "strategy": "dilocco"}, "strategy.name: there is no 'dilocco'"),
        ({**SMALLEST, "strategy": {"name": "diloco", "intervall": 3}}, "did you mean 'interval'?"),
        (
            {**SMALLEST, "strategy": {"name": "diloco", "outer": {"learning_rate": "x"}}},
            "strategy.outer.learning_rate: expected a number, got a string",
        ),
        ({**SMALLEST, "strategy": {"name": "sync", "interval": 4}}, "[strategy] gradients are exchanged whole"),
        ({**SMALLEST, "inner": {"learning_rate": -1.0}}, "[inner] learning_rate is -1.0, not above 0"),
        ({**SMALLEST, "inner": {"schedule": {"knd": "cosine"}}}, "the table [inner.schedule] has no key 'knd'"),
        ({**SMALLEST, "limits": {"upload": "0 Mbit/s"}}, "limits.upload: a rate of zero would never finish a round"),
        ({**SMALLEST, "limits": {"upload": "fast"}}, "limits.upload: cannot read the rate 'fast'"),
        ({**SMALLEST, "limits": {"memory": "8 elephants"}}, "limits.memory: cannot read the size"),
        ({**SMALLEST, "limits": {"hours": ["22 to 7"]}}, "limits.hours: cannot read '22 to 7'"),
        ({**SMALLEST, "name": "a\nb"}, "name has characters that cannot be printed"),
    ],
)
def test_what_is_wrong_names_the_key(tables: dict[str, Any], line: str) -> None:
    assert line in complaint(tables)
    assert "\n" not in complaint(tables)


def test_a_named_strategy_keeps_its_numbers_where_they_are_not_changed() -> None:
    strategy = {"name": "diloco", "interval": 12, "outer": {"learning_rate": 0.5}}
    found = config_from({**SMALLEST, "strategy": strategy}, Path()).config.strategy
    assert (found.interval, found.outer.learning_rate, found.outer.momentum, found.outer.kind) == (
        12,
        0.5,
        0.9,
        "nesterov",
    )


def test_auto_settings_wait_for_the_measured_link() -> None:
    strategy = {"name": "diloco", "interval": "auto", "preset": "auto"}
    assert config_from({**SMALLEST, "strategy": strategy}, Path()).auto == ("interval", "preset")


def test_a_falling_schedule_ends_with_the_run() -> None:
    tables = {**SMALLEST, "rounds": 20, "strategy": {"name": "diloco", "interval": 10}}
    found = config_from({**tables, "inner": {"schedule": {"kind": "cosine", "warmup": 5}}}, Path())
    assert found.config.inner.schedule.total == 200


def test_files_that_are_no_config_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_text("name = [")
    with pytest.raises(UsageError, match=r"a.toml is not TOML"):
        read_config(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot read"):
        read_config(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_text('name = "x"\n[data]\nfiles = ["a"]\nbad = 1\n')
    with pytest.raises(UsageError, match=r"c.toml: the table \[data\] has no key 'bad'"):
        read_config(tmp_path / "c.toml")


def test_a_config_file_is_what_its_tables_are(tmp_path: Path) -> None:
    tables = tiny_tables(tmp_path)
    (tmp_path / "train.toml").write_text(as_toml(tables))
    found = read_config(tmp_path / "train.toml")
    assert found == config_from(tables, tmp_path)
    assert found.base == tmp_path


def test_reading_a_config_imports_no_torch() -> None:
    code = (
        "import shoal.node.training.config_file, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
