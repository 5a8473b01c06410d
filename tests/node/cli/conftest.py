"""Folders for homes, and the command line in this process with a home."""

import tempfile
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


@pytest.fixture
def folder() -> Path:
    """For real nodes: below the temporary folder by which a test's processes are known; short enough for sockets."""
    return Path(tempfile.mkdtemp(dir=tempfile.gettempdir(), prefix="h-"))
