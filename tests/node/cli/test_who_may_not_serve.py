"""Nodes that the swarm does not want: revoked while they were away, or the second with one identity."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from node.cli.shoal_process import HERE, assert_free, ended, run, spawn

from shoal.node.local_swarm import LocalNode, create_invite, start_node

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
GATEWAY = ["--gateway-only", "--api-port", "0"]


@pytest.fixture
def owner(folder: Path) -> Iterator[LocalNode]:
    node = start_node(folder, "ana", GATEWAY)
    try:
        node.wait_for("ready")
        yield node
    finally:
        node.stop()


@pytest.fixture
def guest(folder: Path, owner: LocalNode) -> Iterator[LocalNode]:
    node = start_node(folder, "ben", GATEWAY, invite=create_invite(owner))
    try:
        node.wait_for("ready")
        yield node
    finally:
        node.stop()


def peers_known_to(node: LocalNode) -> set[str]:
    return {event["peer"] for event in run("peers", "--json", "--home", str(node.home.root)).events}


def test_a_node_that_was_revoked_while_away_is_told_so_at_its_next_start(
    folder: Path, owner: LocalNode, guest: LocalNode
) -> None:
    peer = guest.event("identified")["peer"]
    guest.stop()
    assert guest.process.returncode == 0
    assert run("peers", "revoke", peer, "--home", str(owner.home.root)).code == 0
    for _ in range(2):  # once from the swarm, once from what the home remembers
        ran = ended(spawn(["up", "--json", "--gateway-only", "--home", str(guest.home.root), *HERE]))
        assert ran.code == 4, ran
        assert "revoked" in ran.complaint
        assert ran.events[-1]["exit_code"] == 4
        assert "ready" not in {event["event"] for event in ran.events}
        assert_free(guest.home.root)
    assert peers_known_to(owner) == {owner.event("identified")["peer"]}


def test_a_copied_home_does_not_start_beside_the_node_it_was_copied_from(
    folder: Path, owner: LocalNode, guest: LocalNode
) -> None:
    peer = guest.event("identified")["peer"]
    copy = folder / "copy"
    copy.mkdir(mode=0o700)
    for name in ("identity.key", "swarm.json"):
        shutil.copy(guest.home.root / name, copy)
    ran = ended(spawn(["up", "--json", "--gateway-only", "--home", str(copy), *HERE]))
    assert ran.code == 4, ran
    assert "identity" in ran.complaint
    assert "ready" not in {event["event"] for event in ran.events}
    assert_free(copy)
    assert guest.process.poll() is None
    assert peers_known_to(guest) == peers_known_to(owner) == {peer, owner.event("identified")["peer"]}
    guest.process.send_signal(signal.SIGINT)
    assert guest.process.wait(30) == 130
