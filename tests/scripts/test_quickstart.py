"""The quickstart's own promises: the text survives a kill -9, and nothing is left behind."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
SCRIPT = Path(__file__).parents[2] / "scripts" / "quickstart_demo.py"


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", str(SCRIPT), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def leftovers() -> list[str]:
    return [path.name for path in Path(tempfile.gettempdir()).iterdir()]


def test_one_of_three_is_killed_and_the_text_stays_and_all_train_on() -> None:
    process = start()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "[kill -9 " in out
    assert "the text did not change" in out
    assert "█" in out
    assert "the loss has fallen, and all three hold the same parameters" in out
    assert leftovers() == []


@pytest.mark.parametrize(
    ("words", "number"), [("starting three nodes", signal.SIGTERM), ("a private swarm of three", signal.SIGINT)]
)
def test_an_interrupted_quickstart_stops_its_nodes(words: str, number: signal.Signals) -> None:
    process = start()
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            break
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert leftovers() == []
