"""The last part of the quickstart: the three nodes train the model on text that every machine has."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROUNDS = 5  # the first one is a roll call
CONFIG = """
name = "quickstart"
model = "novels-6m"
rounds = {rounds}

[data]
files = [{files}]
sequence = 128

[batch]
sequences = 2

[strategy]
name = "diloco"
interval = 3
preset = "int8"
outer = {{ learning_rate = 0.7, momentum = 0.6 }}

[inner]
learning_rate = 2e-3

[group]
quorum = 3
grace_s = 5.0

[output]
checkpoint_every = 0
"""


def training_config(folder: Path, text: str | None) -> Path:
    """text: a file or folder of the user's; None: sources of the standard library of the running Python"""
    files = text or str(Path(sysconfig.get_path("stdlib")) / "a*.py")
    path = folder / "training.toml"
    path.write_text(CONFIG.format(rounds=ROUNDS, files=json.dumps(str(Path(files).absolute()))))
    return path


@contextmanager
def trainers(config: Path, homes: Mapping[str, Path]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """`shoal train` in each home, whose running node does the work; ended when the context is left."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, home in homes.items():
            command = [sys.executable, "-P", "-m", "shoal", "train", str(config), "--home", str(home), "--json"]
            processes[name] = subprocess.Popen(  # noqa: S603  our own command line
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.communicate()


def rounds_of(processes: Iterable[subprocess.Popen[str]]) -> Iterator[list[dict[str, Any]]]:
    """What all of them say of each round, until one ends; an `error` ends it too."""
    return zip(*(_rounds(process) for process in processes), strict=False)  # type: ignore[return-value]


def _rounds(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] in ("round_done", "error"):
            yield event
