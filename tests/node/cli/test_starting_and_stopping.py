"""Real nodes in real processes: every way to stop one, and every way in which a start goes wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from node.cli.shoal_process import HERE, assert_free, begun, ended, environment, run, spawn

from shoal.node.local_swarm import LocalNode, start_node
from shoal.swarm.home import Home
from shoal.swarm.identity import Identity
from shoal.swarm.members.invite import read_invite, write_invite
from shoal.swarm.members.membership import found_swarm
from shoal.swarm.node_lock import running

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
FAR_FUTURE = 4e9


def is_gone(pid: int) -> bool:
    """A zombie is gone: where init does not collect orphans it stays in the table."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("stage", ["identified", "swarm_found", "network_up", "layers_chosen", "ready"])
def test_ctrl_c_at_any_stage_ends_with_130_and_leaves_nothing(folder: Path, stage: str) -> None:
    process = begun(folder, stage)
    process.send_signal(signal.SIGINT)
    ran = ended(process)
    assert (ran.code, ran.err) == (130, "")
    assert_free(folder)


@pytest.mark.parametrize("stage", ["identified", "ready"])
@pytest.mark.parametrize("times", [2, 3])
def test_an_impatient_ctrl_c_leaves_no_process_either(folder: Path, stage: str, times: int) -> None:
    process = begun(folder, stage)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    ran = ended(process)
    assert ran.code == 130
    assert "Traceback" not in ran.err
    assert running(folder / "node.lock") is None


@pytest.mark.parametrize(
    ("stage", "number"), [("network_up", signal.SIGTERM), ("ready", signal.SIGTERM), ("network_up", signal.SIGHUP)]
)
def test_sigterm_and_a_closed_terminal_are_clean_stops(folder: Path, stage: str, number: signal.Signals) -> None:
    process = begun(folder, stage)
    process.send_signal(number)
    assert ended(process).code == 0
    assert_free(folder)


def test_a_node_in_the_background_is_used_and_stopped(folder: Path) -> None:
    up = run("up", "--detach", "--home", str(folder), "--name", "ana", *HERE)
    assert up.code == 0
    for words in ("ana  12D3KooW", "ana's swarm (private", "novels-6m", "cpu, float32", "http://127.0.0.1:", "shoal1:"):
        assert words in up.out
    for words in ("Privacy: ", "in the background", "shoal down"):
        assert words in up.err
    told = run("generate", "It is a truth", "-n", "8", "--home", str(folder))
    assert told.code == 0
    assert told.out.strip()
    again = run("up", "--home", str(folder), *HERE)
    assert again.code == 4
    assert "already runs with this identity" in again.complaint
    down = run("down", "--json", "--home", str(folder))
    assert down.code == 0
    assert down.events[0]["asked_by"] == "HTTP"
    assert is_gone(down.events[0]["pid"])
    assert_free(folder)
    assert run("down", "--home", str(folder)).code == 3
    log = [json.loads(line) for line in (folder / "logs" / "node.log").read_text().splitlines()]
    assert {"identified", "ready", "leaving"} <= {entry["event"] for entry in log}
    assert "shoal1:" not in (folder / "logs" / "node.log").read_text()


def test_down_ends_a_node_that_is_still_starting(folder: Path) -> None:
    process = begun(folder, "swarm_found")
    down = run("down", "--json", "--home", str(folder))
    assert down.code == 0
    assert down.events[0]["asked_by"] == "SIGTERM"
    assert ended(process).code == 0
    assert_free(folder)


def test_ctrl_c_while_waiting_for_the_background_stops_the_node_too(folder: Path) -> None:
    process = spawn(["up", "--detach", "--json", "--home", str(folder), *HERE])
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "identified"
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 130
    assert_free(folder)


def test_a_failure_in_the_background_has_its_own_exit_code(folder: Path) -> None:
    ran = run("up", "--detach", "--home", str(folder), "--layers", "7:99", *HERE)
    assert ran.code == 2
    assert "out of range" in ran.complaint


def test_files_of_the_working_folder_are_not_taken_for_modules(folder: Path) -> None:
    (folder / "http.py").write_text("raise SystemExit('the working folder was imported')")
    home = folder / "home"
    started = subprocess.run(
        [sys.executable, "-P", "-m", "shoal", "up", "--detach", "--gateway-only", "--home", str(home), *HERE],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert started.returncode == 0, started.stderr
    assert run("down", "--home", str(home)).code == 0


def test_a_gateway_hosts_nothing_and_is_ready_at_once(folder: Path) -> None:
    process = begun(folder, "ready", ["--gateway-only"])
    peers = run("peers", "--json", "--home", str(folder))
    assert [event["hosted"] for event in peers.events] == [[]]
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 0


@pytest.fixture
def broken_model(folder: Path) -> Path:
    empty = folder / "empty-model"
    empty.mkdir()
    return empty


def test_a_model_that_cannot_be_is_named_with_the_right_code(folder: Path, broken_model: Path) -> None:
    home = ["--home", str(folder / "home"), *HERE]
    wrong = {
        ("--layers", "8:9"): (2, "out of range"),
        (str(broken_model),): (2, "config.json"),
        (str(folder / "nowhere"),): (2, "no folder"),
        ("nobody/nothing",): (3, "hub"),
        ("--max-memory", "1MB"): (6, "memory"),
        ("--dtype", "float7"): (2, "float7"),
    }
    for arguments, (code, words) in wrong.items():
        ran = run("up", *arguments, *home)
        assert ran.code == code, (arguments, ran)
        assert words in ran.complaint, arguments
        assert_free(folder / "home")
        if "--layers" in arguments:
            assert not (folder / "home" / "swarm.json").exists(), "a swarm was founded for nothing"


@pytest.mark.parametrize("flag", ["--port", "--api-port"])
def test_a_port_in_use_is_named(folder: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = run("up", "--gateway-only", "--home", str(folder), "--host", "127.0.0.1", flag, port)
    assert ran.code == 2
    assert port in ran.complaint
    assert flag in ran.complaint
    assert_free(folder)


@pytest.fixture
def owner(folder: Path) -> Iterator[LocalNode]:
    node = start_node(folder, "ana", ["--gateway-only", "--api-port", "0"])
    try:
        node.wait_for("ready")
        yield node
    finally:
        node.stop()


def changed(line: str, at: int) -> str:
    return line[:at] + ("A" if line[at] != "A" else "B") + line[at + 1 :]


def test_no_bad_invite_lets_anybody_in(folder: Path, owner: LocalNode) -> None:
    home = ["--home", str(owner.home.root)]
    guest = ["--home", str(folder / "guest"), "--gateway-only", *HERE]
    good = run("invite", *home).out.strip()
    stranger, victim = Identity.generate(), Identity.generate()
    swarm = found_swarm("not mine", victim.peer_id, bytes(16))
    address = (f"/ip4/127.0.0.1/tcp/9/p2p/{victim.peer_id}",)
    own = found_swarm("own", stranger.peer_id, bytes(16))
    bad = {
        "hello": (2, "not an invite"),
        good[:-5]: (2, "damaged"),
        changed(good, 40): (2, "damaged"),
        write_invite(stranger, swarm, address, FAR_FUTURE, bytes(16)): (4, "forged"),
        write_invite(stranger, own, address, 1.0, bytes(16)): (4, "expired"),
        write_invite(stranger, own, address, FAR_FUTURE, bytes(16)): (3, "no peer"),
    }
    for line, (code, words) in bad.items():
        ran = run("join", line, *guest)
        assert ran.code == code, (words, ran)
        assert words in ran.complaint
        assert_free(folder / "guest")
    revoked = run("invite", *home).out.strip()
    open_invites = [i for i in run("invite", "list", "--json", *home).events if i["state"] == "open"]
    newest = max(open_invites, key=lambda each: each["created_at"])
    assert run("invite", "revoke", newest["id"], *home).code == 0
    refused = run("join", revoked, *guest)
    assert refused.code == 4
    assert "revoked" in refused.complaint


def test_an_invite_lets_in_one_machine_until_it_is_revoked(folder: Path, owner: LocalNode) -> None:
    home = ["--home", str(owner.home.root)]
    line = run("invite", *home).out.strip()
    guest = ["--home", str(folder / "guest"), "--name", "ben", "--gateway-only", *HERE]
    joined = run("join", "-", "--detach", *guest, "--json")
    assert joined.code == 2  # an empty stdin
    joined = run("join", "-", "--detach", *guest, "--json", stdin=line + "\n")
    assert joined.code == 0
    found = {event["event"]: event for event in joined.events}
    assert found["swarm_found"]["owner"] is False
    assert line not in joined.out
    second = run("join", line, "--home", str(folder / "third"), "--gateway-only", *HERE)
    assert second.code == 4
    assert "already used" in second.complaint
    assert run("down", "--home", str(folder / "guest")).code == 0


def test_a_revoked_node_ends_with_4_and_does_not_come_back(folder: Path, owner: LocalNode) -> None:
    line = run("invite", "--home", str(owner.home.root)).out.strip()
    guest = start_node(folder, "ben", ["--gateway-only", "--api-port", "0"], invite=line)
    try:
        guest.wait_for("ready")
        peer = guest.event("identified")["peer"]
        assert run("peers", "revoke", peer, "--home", str(owner.home.root)).code == 0
        assert guest.process.wait(60) == 4
    finally:
        guest.stop()
    assert "revoked" in guest.event("error")["message"]
    again = run("up", "--gateway-only", *HERE, "--home", str(guest.home.root))
    assert again.code == 4
    assert "revoked" in again.complaint


def until_ready(process: subprocess.Popen[str]) -> dict[str, dict[str, Any]]:
    """Its events by name."""
    assert process.stdout is not None
    events: dict[str, dict[str, Any]] = {}
    while "ready" not in events:
        event = json.loads(process.stdout.readline())
        events[event["event"]] = event
    return events


def test_an_owner_that_comes_back_has_its_name_and_its_open_invite(folder: Path) -> None:
    home = ["--home", str(folder)]
    first = spawn(["up", "--json", "--gateway-only", "--name", "ada", *home, *HERE])
    before = until_ready(first)
    first.send_signal(signal.SIGTERM)
    assert ended(first).code == 0
    second = spawn(["up", "--json", "--gateway-only", *home, *HERE])
    try:
        after = until_ready(second)
        made = run("invite", "--json", *home).events[0]
        listed = {each["id"]: each["state"] for each in run("invite", "list", "--json", *home).events}
        itself = run("peers", "revoke", "ada", *home)
        status = run("status", *home)
    finally:
        second.send_signal(signal.SIGTERM)
    assert ended(second).code == 0
    assert after["identified"]["name"] == "ada"
    assert after["ready"]["invite_expires_at"] == before["ready"]["invite_expires_at"]
    assert listed == {made["id"]: "open", read_invite(before["ready"]["invite"], 0.0).id: "open"}
    assert itself.code == 2
    assert "the node itself" in itself.complaint
    assert "this machine only" in status.out


def test_a_node_whose_daemon_died_is_never_called_starting_again(folder: Path) -> None:
    process = begun(folder, "ready", ["--gateway-only"])
    (daemon,) = [each for each in psutil.Process(process.pid).children(recursive=True) if each.name() == "p2pd"]
    daemon.kill()
    seen = set()
    while process.poll() is None:
        status = run("status", "--home", str(folder))
        if status.code:
            seen.add(status.complaint)
    ran = ended(process)
    assert ran.code == 3
    assert "libp2p daemon died" in ran.complaint
    assert not [words for words in seen if "starting" in words]
    assert_free(folder)


def test_a_node_killed_with_9_leaves_its_home_usable(folder: Path) -> None:
    process = begun(folder, "ready", ["--gateway-only"])
    process.kill()
    ended(process)
    status = run("status", "--home", str(folder))
    assert status.code == 3
    again = begun(folder, "ready", ["--gateway-only"])
    again.send_signal(signal.SIGINT)
    assert ended(again).code == 130


def test_a_thin_client_asks_without_a_node(folder: Path) -> None:
    node = start_node(folder, "ana", ["--api-port", "0"])
    try:
        node.wait_for("ready")
        line = run("invite", "--home", str(node.home.root)).out.strip()
        client = ["--home", str(folder / "client")]
        first = run("generate", "It is a truth", "-n", "8", "--invite", line, *client)
        assert first.code == 0
        second = run("generate", "It is a truth", "-n", "8", *client)
        assert second.out == first.out == run("generate", "It is a truth", "-n", "8", "--home", str(node.home.root)).out
        assert "novels-6m" in run("models", *client).out
        assert_free(folder / "client")
    finally:
        node.stop()
    gone = run("generate", "hi", "--home", str(folder / "client"))
    assert gone.code == 3
    assert gone.complaint


def test_doctor_finds_a_usable_machine(folder: Path) -> None:
    ran = run("doctor", "--json", "--home", str(folder / "none"))
    assert ran.code == 0
    *checks, last = ran.events
    states = {check["name"]: check["state"] for check in checks}
    assert states["p2pd"] in ("ok", "warn")
    assert {"python", "torch", "memory", "disk", "home", "identity", "settings", "ports", "node", "hub"} <= set(states)
    assert last["event"] == "doctor"
    assert os.environ.get("HF_ENDPOINT") or states["hub"] == "warn"  # the test's hub address answers nobody
    assert not Home(folder / "none").root.exists()
