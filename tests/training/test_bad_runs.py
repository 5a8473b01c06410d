"""`shoal train` against what goes wrong on a volunteer's machine: one clear line, and the exit code that fits."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from node.cli.shoal_process import Ran, ended, environment, run
from training.tiny_run import as_toml, tiny_tables
from training.train_process import PATIENCE_S, said, start_trainer, trainers, wait_until

from shoal.node.training.checkpoints.reader import latest

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
ALONE = {"quorum": 1, "shards": 3}
AN_HOUR = 3600
WITH_A_WRONG_CLOCK = (
    f"import runpy, sys, time; real = time.time; time.time = lambda: real() + {AN_HOUR};"
    "sys.argv[0] = 'shoal'; runpy.run_module('shoal', run_name='__main__')"
)


def written(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    quick = {"rounds": 0, "strategy": {"name": "diloco", "interval": 20}, "evaluation": {"every": 0}}
    path = folder / "train.toml"
    path.write_text(as_toml(tiny_tables(folder, **{**quick, **changes})))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def keep_full(disk: Path, process: subprocess.Popen[str]) -> None:
    """Not even a page more goes onto it until the process has ended, also when that drops an old checkpoint."""
    deadline = time.perf_counter() + PATIENCE_S
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while process.poll() is None and time.perf_counter() < deadline:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass
            time.sleep(0.01)


def test_a_disk_that_is_full_at_a_checkpoint_ends_with_6_and_leaves_the_old_one(
    tmp_path: Path, small_disk: Path
) -> None:
    config = written(tmp_path, group=ALONE, output={"folder": str(small_disk / "run"), "checkpoint_every": 2})
    ana = start_trainer(config, tmp_path, "ana")
    try:
        wait_until(lambda: bool(said(ana, "saved")), ana)
        keep_full(small_disk, ana.process)
        assert ana.process.wait(60) == 6
    finally:
        ana.stop()
    (error,) = said(ana, "error")
    assert error["exit_code"] == 6
    assert "No space left on device" in error["message"] or "does not fit" in error["message"], error
    assert str(small_disk) in error["message"]
    assert len(ana.errors) <= 3, ana.errors
    (small_disk / "filler").unlink()
    found = latest(small_disk / "run" / "checkpoints")
    assert found is not None
    assert found.refused == ()
    again = start_trainer(config, tmp_path, "ana", "--resume")
    try:
        wait_until(lambda: bool(said(again, "round_done")), again)
        assert said(again, "round_done")[0]["round"] > found.snapshot.round
    finally:
        again.stop()


def interrupted(config: Path, folder: Path, saves: int, *more: str) -> list[str]:
    """Train alone until so many checkpoints are saved, stop. returns: the notices"""
    ana = start_trainer(config, folder, "ana", *more)
    try:
        wait_until(lambda: len(said(ana, "saved")) >= saves, ana)
        ana.process.send_signal(signal.SIGINT)
        assert ana.process.wait(60) == 130
    finally:
        ana.stop()
    return [event["text"] for event in said(ana, "noticed")]


def test_a_truncated_checkpoint_is_told_and_the_one_before_is_used(tmp_path: Path) -> None:
    config = written(tmp_path, group=ALONE, output={"checkpoint_every": 2})
    assert interrupted(config, tmp_path, 2) == []
    saved = sorted((tmp_path / "ana" / "runs" / "tiny" / "checkpoints").iterdir())
    for path in saved[-1].iterdir():
        if path.name == "model.safetensors":
            path.write_bytes(path.read_bytes()[:1000])
    (notice,) = interrupted(config, tmp_path, 1, "--resume")
    assert notice.startswith(f"checkpoint {saved[-1].name} is damaged: model.safetensors has 1000 bytes")


def test_when_no_checkpoint_is_whole_nothing_is_begun_anew(tmp_path: Path) -> None:
    config = written(tmp_path, group=ALONE, output={"checkpoint_every": 2})
    interrupted(config, tmp_path, 1)
    for saved in (tmp_path / "ana" / "runs" / "tiny" / "checkpoints").iterdir():
        (saved / "model.safetensors").write_bytes(b"short")
    done = trained(config, tmp_path, "--resume")
    assert done.code == 2
    assert "no checkpoint in" in done.complaint
    assert "model.safetensors has 5 bytes" in done.complaint


def test_a_run_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    config = written(tmp_path, group=ALONE, output={"checkpoint_every": 2})
    interrupted(config, tmp_path, 1)
    done = trained(config, tmp_path)
    assert done.code == 2
    assert "holds this run already; go on with --resume, or choose another output.folder" in done.complaint


def trained(config: Path, folder: Path, *more: str) -> Ran:
    """As far as it goes, in ana's home."""
    home = ["--home", str(folder / "ana"), "--host", "127.0.0.1", "--api-port", "0"]
    return run("train", str(config), *home, *more, timeout_s=120)


def test_peers_with_another_model_are_told_apart(tmp_path: Path) -> None:
    with trainers(written(tmp_path), tmp_path) as crew:
        crew.start("ana").wait_for("planned")
        crew._config = written(tmp_path / "other", model=str(tmp_path / "model"), seed=7)  # noqa: SLF001
        ben = crew.start("ben")
        assert ben.process.wait(120) == 7
        (error,) = said(ben, "error")
        assert error["exit_code"] == 7
        assert "trains another run by the name 'tiny': model is" in error["message"]


def test_a_clock_that_is_an_hour_off_is_told_when_the_swarm_is_joined(tmp_path: Path) -> None:
    with trainers(written(tmp_path), tmp_path) as crew:
        crew.start("ana").wait_for("ready")
        ben = crew.start("ben")
        ben.wait_for("ready")
        ben.stop()
        command = ["train", str(tmp_path / "train.toml"), "--home", str(ben.home.root), "--host", "127.0.0.1"]
        process = subprocess.Popen(
            [sys.executable, "-c", WITH_A_WRONG_CLOCK, *command, "--api-port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        done = ended(process)
        assert done.code == 2, done.err
        assert f"this machine's clock is {AN_HOUR} s ahead of the swarm's; set it right" in done.complaint
