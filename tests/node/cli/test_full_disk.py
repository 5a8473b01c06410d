"""A disk that fills up while a model is downloaded: what came is kept, the rest comes when there is room again."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from node.cli.shoal_process import HERE, Ran, assert_free, begun, ended, environment, spawn
from node.hub_server import Hub, running_hub
from node.tiny_models import make_model, save_model

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
DISK = "20m"  # SPARE_BYTES and the tiny model just fit
STALL_AFTER = 100_000  # bytes of the weights
PAGE = 4096
SEMAPHORE = 64  # bytes that one of Python's takes at most, in a file
LIMIT = 300_000  # bytes of any file
WITH_SMALL_FILES = (
    f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, resource.RLIM_INFINITY));"
    "sys.argv[0] = 'shoal'; runpy.run_module('shoal', run_name='__main__')"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(make_model("llama"), tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with running_hub({"novels/tiny": model}) as hub:
        yield hub
        hub.go_on.set()


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def of_hub(hub: Hub, folder: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")}


def fill(disk: Path, log: Path) -> None:
    """Leave no free byte, not even in the last page of the log."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    assert shutil.disk_usage(disk).free == 0
    with log.open("ab") as file:
        file.write(b"\n" * (PAGE - log.stat().st_size % PAGE))


def starting_with_no_room(arguments: list[str], home: Path) -> Ran:
    """`shoal up` with room for a semaphore in each file, and for no key and no line of a log."""
    no_room = WITH_SMALL_FILES.replace(str(LIMIT), str(SEMAPHORE))
    command = [sys.executable, "-c", no_room, *arguments, "--json", "--home", str(home), *HERE]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def test_a_start_in_the_background_with_no_room_is_told_as_in_the_foreground(folder: Path) -> None:
    here = starting_with_no_room(["up"], folder / "home")
    behind = starting_with_no_room(["up", "--detach"], folder / "home")
    assert here.code == behind.code == 2
    assert here.complaint == behind.complaint
    assert "identity.key" in here.complaint
    assert behind.events[-1]["exit_code"] == 2
    assert_free(folder / "home")


def test_a_start_in_the_background_on_a_full_disk_ends_with_6(small_disk: Path) -> None:
    with (small_disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    ran = ended(spawn(["up", "--detach", "--home", str(small_disk / "home"), *HERE]))
    assert ran.code == 6
    assert "the disk is full" in ran.complaint


def part_of(home: Path) -> Path:
    (part,) = home.rglob("*.part")
    return part


def test_a_disk_that_fills_up_during_the_download_loses_nothing(folder: Path, small_disk: Path, hub: Hub) -> None:
    home = small_disk / "home"
    hub.stall_after = STALL_AFTER
    process = begun(home, "layers_chosen", ["novels/tiny"], **of_hub(hub, folder))
    assert hub.stalled.wait(30)
    fill(small_disk, home / "logs" / "node.log")
    hub.go_on.set()
    ran = ended(process)
    assert ran.code == 6
    assert "the disk is full" in ran.complaint
    assert "model.safetensors" in ran.complaint
    assert (
        ran.err == f"shoal: {ran.complaint}\n"
    )  # the log could not be written either, and nobody is told on the screen
    error = ran.events[-1]
    assert (error["event"], error["type"], error["exit_code"]) == ("error", "OutOfMemory", 6)
    assert_free(home)
    assert part_of(home).stat().st_size >= STALL_AFTER


def test_a_download_that_may_not_be_written_whole_goes_on_later(folder: Path, hub: Hub) -> None:
    home = folder / "home"
    command = [sys.executable, "-c", WITH_SMALL_FILES, "up", "novels/tiny", "--json", "--home", str(home), *HERE]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**of_hub(hub, folder)),
    )
    ran = ended(process)
    assert ran.code == 6
    assert "cannot write model.safetensors" in ran.complaint
    assert_free(home)
    held = part_of(home).stat().st_size
    assert held == LIMIT
    hub.requests.clear()
    process = begun(home, "ready", ["novels/tiny"], **of_hub(hub, folder))
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 130
    assert hub.downloads()["model.safetensors"] == [f"bytes={held}-"]
    assert not list(home.rglob("*.part"))
