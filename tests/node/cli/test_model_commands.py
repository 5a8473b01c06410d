"""`shoal models export | merge | publish` as a user runs them, without a node."""

import json
from pathlib import Path

import numpy as np
import pytest
from node.cli.shoal_process import Here
from node.tiny_models import make_model, save_model
from safetensors.torch import load_file

from shoal.node.model_source import embedded_folder
from shoal.node.training.checkpoints.snapshot import Snapshot, Value
from shoal.node.training.checkpoints.store import CheckpointStore
from shoal.node.training.model_export import model_shapes
from shoal.node.training.parameter_layout import ParameterLayout

COMMANDS = [["models", "export"], ["models", "merge"], ["models", "publish"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(shoal: Here, command: list[str]) -> None:
    ran = shoal(*command, "--help")
    assert ran.code == 0
    assert f"Example: shoal {' '.join(command)}" in ran.out
    assert "--json" in ran.out
    assert "--home" in ran.out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("tiny")
    made = [make_model("llama", seed, hidden_size=32, num_hidden_layers=2) for seed in (1, 2)]
    return [str(save_model(model, folder / f"m{i}")) for i, model in enumerate(made)]


def test_two_folders_are_merged_into_a_third(shoal: Here, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = shoal("models", "merge", *tiny, "--out", str(out), "--weights", "1,3", "--json")
    assert ran.code == 0
    assert ran.events == [{"schema": 1, "event": "merged", "folder": str(out), "method": "average", "models": tiny}]
    one, two, merged = (load_file(Path(f) / "model.safetensors") for f in (*tiny, str(out)))
    name = "model.norm.weight"
    assert np.allclose(merged[name], 0.25 * one[name] + 0.75 * two[name], atol=1e-6)


def test_the_other_ways_of_merging(shoal: Here, tiny: list[str], tmp_path: Path) -> None:
    task = shoal(
        "models", "merge", tiny[0], "--method", "task-arithmetic", "--base", tiny[1], "--out", str(tmp_path / "task")
    )
    assert (task.code, task.out) == (0, f"{tmp_path / 'task'}\n")
    assert shoal("models", "merge", *tiny, "--method", "slerp", "--at", "0", "-o", str(tmp_path / "slerp")).code == 0
    first = load_file(Path(tiny[0]) / "model.safetensors")
    for out in ("task", "slerp"):
        for name, tensor in load_file(tmp_path / out / "model.safetensors").items():
            assert np.allclose(tensor, first[name], atol=1e-6), (out, name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["A"], "at least two models"),
        (["A", "B", "--weights", "1"], "1 weights for 2 models"),
        (["A", "B", "--weights", "one,two"], "write numbers with commas"),
        (["A", "B", "--method", "slerp", "--weights", "1,2"], "--at, not --weights"),
        (["A", "B", "--method", "slerp", "--at", "2"], "from 0 to 1"),
        (["A", "--method", "task-arithmetic"], "--base"),
        (["A", "B", "--method", "magic"], "--method"),
        (["./nowhere", "B"], "no folder"),
    ],
)
def test_a_misused_merge_is_told_in_one_line(
    shoal: Here, tiny: list[str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    named = [{"A": tiny[0], "B": tiny[1]}.get(argument, argument) for argument in arguments]
    ran = shoal("models", "merge", *named, "--out", str(tmp_path / "out"))
    assert ran.code == 2
    assert words in ran.complaint
    assert not (tmp_path / "out").exists()


def save_run(folder: Path, model: Path, rounds: tuple[int, ...]) -> None:
    """A run's folder with checkpoints of a model whose every parameter is the round's number."""
    layout = ParameterLayout.of(model_shapes(json.loads((model / "config.json").read_text())))
    store = CheckpointStore(folder / "checkpoints")
    for round_ in rounds:
        state: dict[str, Value] = {"outer.values": np.full(layout.count, round_, np.float32), "outer.rounds": round_}
        store.save(Snapshot.of("run", round_, bytes(32), layout, state))


def test_the_newest_checkpoint_of_a_run_is_exported(shoal: Here, tiny: list[str], tmp_path: Path) -> None:
    save_run(tmp_path / "run", Path(tiny[0]), (3, 9))
    out = tmp_path / "out"
    ran = shoal(
        "models", "export", str(tmp_path / "run"), str(out), "--model", tiny[0], "--dtype", "bfloat16", "--json"
    )
    assert ran.code == 0
    assert ran.events[0] | {"state": ""} == {
        "schema": 1, "event": "exported", "folder": str(out), "round": 9, "state": "", "dtype": "bfloat16",
    }  # fmt: skip
    assert load_file(out / "model.safetensors")["model.norm.weight"].tolist() == [9.0] * 32


def test_one_checkpoint_can_be_named_and_a_damaged_one_is_told(shoal: Here, tiny: list[str], tmp_path: Path) -> None:
    save_run(tmp_path / "run", Path(tiny[0]), (3, 9))
    older, newer = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert shoal("models", "export", str(older), str(tmp_path / "three"), "--model", tiny[0]).code == 0
    assert load_file(tmp_path / "three" / "model.safetensors")["model.norm.weight"].tolist() == [3.0] * 32
    (newer / "model.safetensors").write_bytes(b"short")
    damaged = shoal("models", "export", str(newer), str(tmp_path / "nine"), "--model", tiny[0])
    assert damaged.code == 2
    assert newer.name in damaged.complaint
    fallen_back = shoal("models", "export", str(tmp_path / "run"), str(tmp_path / "run3"), "--model", tiny[0])
    assert fallen_back.code == 0
    assert newer.name in fallen_back.err


def test_an_export_that_cannot_be_is_told_in_one_line(shoal: Here, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing = shoal("models", "export", str(tmp_path / "empty"), str(tmp_path / "out"))
    assert (nothing.code, "holds no checkpoint" in nothing.complaint) == (2, True)
    save_run(tmp_path / "run", Path(tiny[0]), (3,))
    other = shoal("models", "export", str(tmp_path / "run"), str(tmp_path / "out"), "--model", str(embedded_folder()))
    assert (other.code, "checkpoint" in other.complaint) == (2, True)
    assert not (tmp_path / "out").exists()


def test_publishing_wants_a_node(shoal: Here, tiny: list[str]) -> None:
    ran = shoal("models", "publish", tiny[0])
    assert ran.code == 3
    assert "no node is running here" in ran.complaint
