"""Real nodes keep ledgers: what one asks of another stands in both, and outlives a kill -9."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.incentives.store import Store
from shoal.node.local_swarm import LocalNode, environment, local_swarm, start_node
from shoal.swarm.home import Home
from shoal.swarm.identity import Identity

pytestmark = pytest.mark.network
LOOKS, PERIOD_S = 60, 0.5
LAYERS = {"a": "embed+0:4", "b": "4:8+head"}


def shoal(home: Path, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "shoal", *words, "--home", str(home), "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def kinds(home: Path) -> list[tuple[str, int, str]]:
    """Who wrote what, as the node's own command tells."""
    return [(event["author"], event["seq"], event["kind"]) for event in shoal(home, "ledger", "history")]


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(LOOKS):
        if condition():
            return
        time.sleep(PERIOD_S)  # another process: there is nothing to wait for
    raise AssertionError(f"not at any of {LOOKS} looks: {what}")


def ask(home: Path) -> None:
    shoal(home, "generate", "It was a cold morning, and the wind blew over the hills", "--max-tokens", "60")


def test_a_client_learns_of_the_settlement_and_a_killed_server_goes_on_with_its_chain(tmp_path: Path) -> None:
    a, b = (Home(tmp_path / name) for name in LAYERS)
    with local_swarm(tmp_path, {name: ["novels-6m", "--ledger", "--layers", LAYERS[name]] for name in LAYERS}) as nodes:
        client, server = (Identity.load_or_create(home.identity).peer_id for home in (a, b))

        def has_receipt() -> bool:
            ask(a.root)
            return bool(kinds(a.root))

        until(has_receipt, "the client was told of its own chain, and signs")
        first = [(client, 0, "open"), (server, 0, "close")]
        until(lambda: kinds(a.root) == first, "the client hears of the CLOSE")
        assert open_sessions(a) == 0
        nodes["b"].kill()
        second = [*first, (client, 1, "open"), (server, 1, "close")]
        with started_again(tmp_path, nodes):
            ask(a.root)
            until(lambda: kinds(a.root) == second, "the client hears of the second CLOSE")
        assert kinds(b.root) == [(server, 0, "close"), (server, 1, "close")]
        for file in b.root.glob("ledger.sqlite*"):
            file.unlink()  # as if restored from a backup of the time before
        third = [*second, (client, 2, "open"), (server, 2, "close")]
        with started_again(tmp_path, nodes):
            ask(a.root)
            until(lambda: kinds(a.root) == third, "a server that lost its ledger goes on with its chain, and forks not")
        assert open_sessions(a) == 0
        for home in (a, b):
            assert shoal(home.root, "ledger", "verify")[-1]["sound"] is True


@contextmanager
def started_again(folder: Path, nodes: dict[str, LocalNode]) -> Iterator[None]:
    """Another process at the home of b, whose first is gone."""
    nodes["b"] = start_node(folder, "b", ["novels-6m", "--ledger", "--layers", LAYERS["b"]])
    try:
        nodes["b"].wait_for("ready")
        yield
    finally:
        nodes["b"].stop()


def open_sessions(home: Home) -> int:
    """Reservations that still wait for a CLOSE."""
    store = Store(home.ledger, read_only=True)
    try:
        return len(store.balances.reservations)
    finally:
        store.close()


def test_a_node_keeps_no_ledger_unless_it_is_asked_to(tmp_path: Path) -> None:
    with local_swarm(tmp_path, {"a": ["novels-6m"]}):
        shoal(tmp_path / "a", "generate", "It was", "--max-tokens", "3")
    assert not (tmp_path / "a" / "ledger.sqlite").exists()


def test_a_node_whose_witness_file_is_spoilt_serves_without_receipts(tmp_path: Path) -> None:
    home = Home(tmp_path / "a")
    home.prepare()
    home.witness.mkdir()
    with local_swarm(tmp_path, {"a": ["novels-6m", "--ledger"]}) as nodes:
        assert "signs no receipts" in nodes["a"].event("warned")["text"]
        ask(home.root)
    assert kinds(home.root) == []
