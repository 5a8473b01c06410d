"""A model in three stages over real daemons; the middle one is held twice, and one of the two is killed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from training.tiny_run import as_toml, tiny_tables
from training.train_process import said, trainers, wait_until
from transformers import AutoModelForCausalLM

from shoal.node.cli.main import main
from shoal.node.local_swarm import LocalNode

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]


def written(folder: Path, **changes: object) -> Path:
    tables = tiny_tables(
        folder,
        **{
            "rounds": 0,
            "strategy": {"name": "diloco", "interval": 10},
            "group": {"grace_s": 3.0, "deadline_s": 30.0, "quorum": 1},
            "pipeline": {"stages": 3},
            "output": {"checkpoint_every": 1},
            **changes,
        },
    )
    path = folder / "train.toml"
    path.write_text(as_toml(tables))
    return path


def states(node: LocalNode) -> dict[int, str]:
    return {event["round"]: event["state"] for event in said(node, "round_done")}


def learned(node: LocalNode, since: int = -1) -> list[dict[str, Any]]:
    return [e for e in said(node, "round_done") if e["loss"] is not None and e["round"] > since]


def together(node: LocalNode, peers: int) -> list[int]:
    return [e["round"] for e in learned(node) if len(e["peers"]) == peers]


def loss_of(folder: Path, text: str) -> float:
    """Of the exported model as transformers loads it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids[:96]])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def test_three_stages_train_and_a_killed_replica_of_a_doubled_stage_is_hardly_noticed(tmp_path: Path) -> None:
    with trainers(written(tmp_path), tmp_path) as run:
        ana = run.start("ana", "--stage", "0")
        ana.wait_for("ready")
        ben = run.start("ben", "--stage", "1")
        wait_until(lambda: bool(said(ben, "stage_chosen")), ana, ben)
        cleo = run.start("cleo")
        wait_until(lambda: bool(said(cleo, "stage_chosen")), ana, ben, cleo)
        assert said(cleo, "stage_chosen")[0]["stage"] == 2, "the only stage that nobody held"
        dan = run.start("dan", "--stage", "1")
        everyone = ana, ben, cleo, dan
        wait_until(lambda: len(together(ben, 2)) >= 2 and len(together(dan, 2)) >= 2, *everyone)
        shared = states(ben).keys() & states(dan).keys()
        assert len(shared) >= 2
        assert all(states(ben)[round_] == states(dan)[round_] for round_ in shared)

        killed_at = max(states(ana))
        ben.kill()
        wait_until(lambda: len(learned(ana, killed_at)) >= 3 and len(learned(dan)) > len(shared), ana, cleo, dan)
        redone = said(ana, "microbatch_redone")
        assert {event["stage"] for event in redone} <= {1}
        assert len(redone) <= 6, "those that were on their way through it"
        assert all(event["pause_s"] < 15 for event in redone)
        losses = [event["loss"] for event in learned(ana)]
        assert losses[-1] < losses[0] - 0.5
        ana.stop()
        assert ana.process.returncode == 0, ana.errors
        exported = tmp_path / "exported"
        here = ["--home", str(ana.home.root), "--json"]
        assert main(["models", "export", str(ana.home.root / "runs" / "tiny"), str(exported), *here]) == 0
        assert loss_of(exported, (tmp_path / "held.txt").read_text()) < losses[0] - 0.5
        for node in (cleo, dan):
            node.stop()
            assert node.process.returncode == 0, node.errors


def test_another_pipeline_by_the_same_name_is_told_apart(tmp_path: Path) -> None:
    with trainers(written(tmp_path), tmp_path) as run:
        ana = run.start("ana", "--stage", "0")
        ana.wait_for("planned")
        other = tmp_path / "other"
        other.mkdir()
        run._config = written(other, pipeline={"stages": 2})  # noqa: SLF001
        ben = run.start("ben", "--stage", "1")
        assert ben.process.wait(90) == 7
        assert "stages differ" in said(ben, "error")[0]["message"]
        wait_until(lambda: any("no replica of stage 1" in event["reason"] for event in said(ana, "waiting")), ana)


def test_a_stage_that_is_not_there_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    home = ["--home", str(tmp_path / "home"), "--json"]
    assert main(["train", str(path), "--stage", "3", *home]) == 2
    error = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "the stages are 0 to 2" in error["message"]
