"""`shoal train` before there is a network: what is wrong is told in one line, with the right exit code."""

import json
from pathlib import Path

import pytest
from node.cli.shoal_process import Here, run
from training.tiny_run import as_toml, tiny_tables


def write(folder: Path, **changes: object) -> str:
    path = folder / "train.toml"
    path.write_text(as_toml(tiny_tables(folder, **changes)))
    return str(path)


def test_unknown_keys_and_wrong_types_name_the_key(shoal: Here, tmp_path: Path) -> None:
    config = Path(write(tmp_path))
    config.write_text(config.read_text().replace("sequence =", "sequnce ="))
    done = shoal("train", str(config))
    assert done.code == 2
    assert "the table [data] has no key 'sequnce'; did you mean 'sequence'?" in done.complaint
    done = shoal("train", write(tmp_path, rounds="many"), "--json")
    assert done.code == 2
    assert done.events[0]["message"].endswith("rounds: expected a whole number, got a string")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": {"files": ["nothing"]}}, "data.files: there is no file or folder"),
        ({"data": {"held_out": ["none.txt"]}}, "data.held_out: there is no file or folder"),
        ({"limits": {"upload": "0 kbit/s"}}, "limits.upload: a rate of zero would never finish a round"),
    ],
)
def test_what_can_be_seen_at_once_is_told_at_once(
    shoal: Here, tmp_path: Path, changes: dict[str, object], line: str
) -> None:
    done = shoal("train", write(tmp_path, **changes))
    assert (done.code, line in done.complaint) == (2, True), done.err


def test_an_empty_data_folder_is_named(shoal: Here, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    done = shoal("train", write(tmp_path, data={"files": ["books"]}))
    assert done.code == 2
    assert "books holds no text, JSONL or Parquet file" in done.complaint


def test_a_training_without_a_config_and_signals_without_a_training(shoal: Here) -> None:
    assert shoal("train").code == 2
    for flag in ("--pause", "--continue"):
        done = shoal("train", flag)
        assert (done.code, done.complaint) == (3, "no training is running here")


def test_a_record_that_is_none_is_told(shoal: Here, tmp_path: Path) -> None:
    (tmp_path / "record.jsonl").write_text("{}\n")
    done = shoal("train", "--check", str(tmp_path / "record.jsonl"))
    assert done.code == 2
    assert "line 1 of" in done.complaint


def test_what_a_check_cannot_do_again_is_told(shoal: Here, tmp_path: Path) -> None:
    done = shoal("train", "--check", str(tmp_path))
    assert done.code == 2
    assert "cannot read" in done.complaint
    record = tmp_path / "record.jsonl"
    record.write_text("")
    done = shoal("train", write(tmp_path), "--check", str(record))
    assert (done.code, done.complaint) == (2, "with a config, --check wants a run's folder, whose rounds it does again")
    done = shoal("train", "--check", str(tmp_path))
    assert (done.code, done.complaint) == (2, "the record does not begin with its run's settings")


def test_a_dry_run_plans_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run("train", write(tmp_path), "--dry-run", "--json", "--home", str(home))
    assert done.code == 0, done.err
    plan = done.events[-1]
    assert plan["event"] == "planned"
    assert plan["parameters"] == 36096
    assert plan["upload_bytes"] == pytest.approx(4 * 36096, rel=0.01)
    assert plan["uplink_bit_s"] is None
    assert not (home / "runs").exists()
    assert not (home / "swarm.json").exists()


@pytest.mark.parametrize(
    ("changes", "code", "line"),
    [
        ({"limits": {"memory": "100MB"}}, 6, "training model needs about 0.63 GB, limits.memory gives 0.10 GB"),
        ({"data": {"sequence": 1000}}, 2, "data.sequence is 1000, but model has a context of 128"),
        ({"data": {"files": ["cut.jsonl"]}}, 2, "line 2 of"),
        ({"batch": {"device": "cuda:77"}}, 2, "device"),
    ],
)
def test_what_the_files_hold_is_told_before_anything_is_trained(
    tmp_path: Path, changes: dict[str, object], code: int, line: str
) -> None:
    config = write(tmp_path, **changes)
    (tmp_path / "cut.jsonl").write_text(json.dumps({"text": "whole"}) + '\n{"text": "cut o')
    done = run("train", config, "--dry-run", "--home", str(tmp_path / "home"))
    assert (done.code, line in done.complaint) == (code, True), done.err


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    novels = Path(__file__).parents[3] / "node" / "embedded" / "novels-6m"
    done = run("train", write(tmp_path, data={"tokenizer": str(novels)}), "--dry-run", "--home", str(tmp_path / "home"))
    assert done.code == 2
    assert "the tokenizer has ids up to 4095, but model has a vocabulary of 257" in done.complaint
