"""Ctrl-C at moments of `shoal up` that no event marks: exit code 130, a quiet end, and nothing left.

That no process, socket or folder is left is checked by `nothing_left_behind`. The stages that events mark are in
test_starting_and_stopping.
"""

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from node.cli.shoal_process import HERE, assert_free, begun, ended, spawn
from node.hub_server import running_hub
from node.tiny_models import make_model, save_model

from shoal.node.local_swarm import LocalNode, create_invite, start_node
from shoal.swarm.home import Home

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
MOMENT_S = 30.0  # until which it has to come
IMPORTS = "PYTHONPROFILEIMPORTTIME"  # Python then says on stderr which module it has just imported
STALL_AFTER = 100_000  # bytes of the weights


def interrupt(process: subprocess.Popen[str], home: Path) -> None:
    process.send_signal(signal.SIGINT)
    ran = ended(process)
    assert (ran.code, ran.err) == (130, "")
    assert_free(home)


def signalled_at_import(folder: Path, module: str, number: signal.Signals) -> tuple[int, list[str]]:
    """The exit code of a `shoal up` that gets the signal when it has imported the module, and what it said."""
    process = spawn(["up", "--json", "--home", str(folder / "home"), *HERE], **{IMPORTS: "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == module:
            break
    else:
        pytest.fail(f"{module} is not imported any more: choose another moment")
    process.send_signal(number)
    ran = ended(process)
    assert_free(folder / "home")
    return ran.code, [line for line in ran.err.splitlines() if not line.startswith("import time:")]


@pytest.mark.parametrize(
    "module",
    [
        "shoal.node.cli.failures",
        "typer.main",
        "pydantic_settings.main",
        "structlog",
        "shoal.swarm.identity",
        "torch.nn",
    ],
)
def test_ctrl_c_while_a_module_is_imported(folder: Path, module: str) -> None:
    assert signalled_at_import(folder, module, signal.SIGINT) == (130, [])


@pytest.mark.parametrize("module", ["shoal.node.cli.failures", "typer.main", "shoal.swarm.identity"])
def test_sigterm_while_a_module_is_imported_is_a_clean_stop(folder: Path, module: str) -> None:
    assert signalled_at_import(folder, module, signal.SIGTERM) == (0, [])


def has_socket(_: Home) -> bool:
    return any(Path(tempfile.gettempdir()).glob("shoal-*/p2pd.sock"))


MOMENTS: dict[str, Callable[[Home], bool]] = {
    "the log is opened": lambda home: (home.logs / "node.log").exists(),
    "the lock is taken": lambda home: home.lock.exists(),
    "the daemon listens": has_socket,
    "the invites are opened": lambda home: home.invites.exists(),
    "the model is hashed": lambda home: (home.cache / "manifests").exists(),
    "the API answers": lambda home: home.node.exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_when_a_file_appears(folder: Path, moment: str) -> None:
    home = Home(folder / "home")
    process = spawn(["up", "--json", "--home", str(home.root), *HERE])
    deadline = time.monotonic() + MOMENT_S  # noqa: TID251  of a real process
    while not MOMENTS[moment](home):
        assert process.poll() is None
        assert time.monotonic() < deadline, f"{moment}: never"  # noqa: TID251
        time.sleep(0.002)
    interrupt(process, home.root)


def test_ctrl_c_during_a_download_keeps_what_came(folder: Path) -> None:
    model = save_model(make_model("llama"), folder / "tiny")
    home = folder / "home"
    with running_hub({"novels/tiny": model}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")}
        hub.stall_after = STALL_AFTER
        process = begun(home, "load_progress", ["novels/tiny"], **environment)
        assert hub.stalled.wait(MOMENT_S)
        interrupt(process, home)
        hub.go_on.set()
    (part,) = home.rglob("model.safetensors.part")
    whole = (model / "model.safetensors").read_bytes()
    assert 0 < part.stat().st_size <= STALL_AFTER
    assert whole.startswith(part.read_bytes())


@pytest.fixture
def owner(folder: Path, request: pytest.FixtureRequest) -> Iterator[LocalNode]:
    node = start_node(folder, "ana", ["--api-port", "0", *getattr(request, "param", [])])
    try:
        node.wait_for("ready")
        yield node
    finally:
        node.stop()


@pytest.mark.parametrize("owner", [["--gateway-only"]], indirect=True, ids=["gateway"])
def test_ctrl_c_while_the_owner_does_not_answer_an_invite(folder: Path, owner: LocalNode) -> None:
    invite = create_invite(owner)
    stopped = [psutil.Process(owner.pid), *psutil.Process(owner.pid).children(recursive=True)]
    for each in stopped:
        each.suspend()
    try:
        process = spawn(["join", invite, "--json", "--home", str(folder / "guest"), "--gateway-only", *HERE])
        assert process.stdout is not None
        assert '"identified"' in process.stdout.readline()
        deadline = time.monotonic() + MOMENT_S  # noqa: TID251
        while not has_dialled(process.pid):
            assert time.monotonic() < deadline  # noqa: TID251
            time.sleep(0.01)
        interrupt(process, folder / "guest")
    finally:
        for each in stopped:
            each.resume()
    joined = spawn(["join", invite, "--json", "--home", str(folder / "guest"), "--gateway-only", *HERE])
    assert joined.stdout is not None
    assert any('"ready"' in line for line in joined.stdout)
    interrupt(joined, folder / "guest")


def has_dialled(pid: int) -> bool:
    """Whether the node's daemon is connected to somebody."""
    daemons = psutil.Process(pid).children(recursive=True)
    return any(link.status == psutil.CONN_ESTABLISHED for each in daemons for link in each.net_connections("tcp"))


def test_ctrl_c_in_the_middle_of_an_answer_stops_asker_and_node(folder: Path, owner: LocalNode) -> None:
    home = owner.home
    asker = spawn(["generate", "It is a truth", "-n", "2000", "--json", "--home", str(home.root)])
    assert asker.stdout is not None
    assert '"piece"' in asker.stdout.readline()
    asker.send_signal(signal.SIGINT)
    assert ended(asker).code == 130
    with httpx.Client(base_url=owner.api, headers={"authorization": f"Bearer {owner.key}"}, timeout=30) as api:
        body = {"prompt": "It is a truth", "max_tokens": 2000, "stream": True}
        with api.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
            owner.process.send_signal(signal.SIGINT)
            assert owner.process.wait(MOMENT_S) == 130
    assert_free(home.root)
    assert owner.errors == []
