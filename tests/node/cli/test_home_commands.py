"""Commands that look only at the home folder."""

import os
from pathlib import Path

import pytest
from node.cli.shoal_process import Here

from shoal.node.cli.last_name import last_name, remember_name
from shoal.node.cli.last_port import last_port, remember_port
from shoal.node.cli.node_choice import node_options
from shoal.swarm.home import Home, NodeFacts
from shoal.swarm.node_lock import NodeLock


def test_the_key_stays_the_same_until_a_new_one_is_made(shoal: Here) -> None:
    first = shoal("key", "show")
    assert first.code == 0
    assert len(first.out.strip()) > 30
    assert shoal("key", "show").out == first.out
    second = shoal("key", "new")
    assert second.out != first.out
    assert shoal("key", "show", "--json").events == [{"schema": 1, "event": "key", "key": second.out.strip()}]


def test_the_key_file_is_for_its_owner_only(shoal: Here, home: Path) -> None:
    shoal("key", "show")
    assert (home / "api.key").stat().st_mode & 0o777 == 0o600
    (home / "api.key").chmod(0o644)
    ran = shoal("key", "show")
    assert ran.code == 2
    assert "chmod 600" in ran.complaint


def test_the_key_of_a_running_node_is_not_replaced(shoal: Here, home: Path) -> None:
    old = shoal("key", "show").out
    with NodeLock(home / "node.lock", "ana"):
        ran = shoal("key", "new")
    assert ran.code == 2
    assert "ana" in ran.complaint
    assert shoal("key", "show").out == old


def test_a_node_that_still_starts_is_not_called_absent(shoal: Here, home: Path) -> None:
    with NodeLock(home / "node.lock", "ana"):
        ran = shoal("status")
    assert ran.code == 3
    assert "still starting" in ran.complaint


def test_a_node_that_is_stopping_is_not_called_starting(shoal: Here, home: Path) -> None:
    place = Home(home)
    place.prepare()
    place.write_facts(NodeFacts(os.getpid(), "ana", "", (), 1.0))
    with NodeLock(place.lock, "ana"):
        ran = shoal("status")
    assert ran.code == 3
    assert "is stopping" in ran.complaint


def test_a_client_without_a_node_is_called_by_its_name(shoal: Here, home: Path) -> None:
    with NodeLock(home / "node.lock", "client"):
        ran = shoal("generate", "hi")
        status = shoal("status")
    assert ran.code == 4
    assert "another shoal command" in ran.complaint
    assert status.code == 3
    assert "no node is running here" in status.complaint


def test_facts_of_a_killed_node_do_not_pass_for_a_running_one(shoal: Here, home: Path) -> None:
    facts = NodeFacts(os.getpid(), "ana", "http://127.0.0.1:9", (), 0.0)
    Home(home).prepare()
    Home(home).write_facts(facts)
    assert shoal("status").code == 3
    assert shoal("down").complaint == "no node is running here"


def test_a_node_whose_api_is_dead_is_told_with_its_log(shoal: Here, home: Path) -> None:
    place = Home(home)
    place.prepare()
    place.write_facts(NodeFacts(os.getpid(), "ana", "http://127.0.0.1:9", (), 0.0))
    with NodeLock(place.lock, "ana"):
        ran = shoal("peers")
    assert ran.code == 3
    assert "node.log" in ran.complaint


@pytest.mark.parametrize("command", [["up", "--gateway-only"], ["up", "--detach"], ["key"]], ids=" ".join)
def test_a_home_that_cannot_be_is_told_in_one_line(shoal: Here, home: Path, command: list[str]) -> None:
    home.write_text("a file")
    ran = shoal(*command)
    assert ran.code == 2
    assert str(home) in ran.complaint


def test_the_port_of_the_last_run_is_taken_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert last_port(home, "127.0.0.1") == 0
    remember_port(home, ["/ip4/127.0.0.1/tcp/40123", "/ip4/192.0.2.7/tcp/40123"])
    assert last_port(home, "127.0.0.1") == 40123


def test_a_node_keeps_the_name_of_its_last_run(tmp_path: Path) -> None:
    home = Home(tmp_path)
    default = node_options(home, {}, None).name
    remember_name(home, "ana")
    assert default != "ana"
    assert node_options(home, {}, None).name == "ana"
    assert node_options(home, {"name": "ben"}, None).name == "ben"
    (tmp_path / "config.toml").write_text('name = "cleo"')
    assert node_options(home, {}, None).name == "cleo"


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xff", b"x" * 57])
def test_a_damaged_name_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last_name").write_bytes(content)
    (tmp_path / "last_name").chmod(0o600)
    assert last_name(Home(tmp_path)) is None


@pytest.mark.parametrize("content", [b"", b"0", b"-5", b"99999999", b"many", b"\xff"])
def test_a_damaged_port_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last_port").write_bytes(content)
    (tmp_path / "last_port").chmod(0o600)
    assert last_port(Home(tmp_path), "127.0.0.1") == 0


def test_a_port_that_somebody_else_has_is_left_to_them(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        remember_port(Home(tmp_path), [f"/ip4/127.0.0.1/tcp/{port}"])
        assert last_port(Home(tmp_path), "127.0.0.1") == 0


def test_two_ports_are_not_remembered(tmp_path: Path) -> None:
    remember_port(Home(tmp_path), ["/ip4/127.0.0.1/tcp/40123", "/ip4/203.0.113.7/tcp/50123"])
    assert last_port(Home(tmp_path), "127.0.0.1") == 0
