"""A home, and the command line in this process with that home."""

from pathlib import Path

import pytest
from node.cli.shoal_process import Here


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("SHOAL_HOME", str(folder))
    return folder


@pytest.fixture
def shoal(home: Path, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(home, capsys)
