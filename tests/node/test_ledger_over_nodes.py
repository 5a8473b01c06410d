"""Real nodes keep ledgers: what one asks of another stands in both, and outlives a kill -9."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.node.local_swarm import environment, local_swarm, start_node

pytestmark = pytest.mark.network
LAYERS = {"a": "embed+0:4", "b": "4:8+head"}


def shoal(home: Path, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "shoal", *words, "--home", str(home), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_session_leaves_its_receipts_at_both_ends_and_a_killed_node_goes_on_with_its_chain(tmp_path: Path) -> None:
    with local_swarm(tmp_path, {name: ["novels-6m", "--ledger", "--layers", LAYERS[name]] for name in LAYERS}) as nodes:
        words = ("generate", "It was a cold morning, and the wind blew over the hills", "--max-tokens", "60")
        shoal(tmp_path / "a", *words)
        nodes["b"].process.kill()
        nodes["b"].process.wait(20)
        nodes["b"] = start_node(tmp_path, "b", ["novels-6m", "--ledger", "--layers", LAYERS["b"]])  # the first is gone
        try:
            nodes["b"].wait_for("ready")
            shoal(tmp_path / "a", *words)
        finally:
            nodes["b"].stop()
        histories = {name: shoal(tmp_path / name, "ledger", "history") for name in LAYERS}
        assert [(event["seq"], event["kind"]) for event in histories["a"]] == [(0, "open"), (1, "open")]
        assert [(event["seq"], event["kind"]) for event in histories["b"]] == [(0, "close"), (1, "close")]
        for name in LAYERS:
            assert shoal(tmp_path / name, "ledger", "verify")[-1]["sound"] is True


def test_a_node_keeps_no_ledger_unless_it_is_asked_to(tmp_path: Path) -> None:
    with local_swarm(tmp_path, {"a": ["novels-6m"]}):
        shoal(tmp_path / "a", "generate", "It was", "--max-tokens", "3")
    assert not (tmp_path / "a" / "ledger.sqlite").exists()
