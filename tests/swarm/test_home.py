"""The data folder."""

import os
import stat
from pathlib import Path

import pytest

from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home, NodeFacts


def test_the_flag_wins_over_the_environment_and_that_over_the_default(tmp_path: Path) -> None:
    environment = {"SHOAL_HOME": str(tmp_path / "environment")}
    assert Home.find(tmp_path / "flag", environment).root == tmp_path / "flag"
    assert Home.find(None, environment).root == tmp_path / "environment"
    assert Home.find(None, {}).root.name == "shoal"
    assert Home.find(Path("relative"), {}).root.is_absolute()
    assert Home.find(Path("~nobody-of-this-name"), {}).root.name == "~nobody-of-this-name"


def test_folders_are_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    for folder in (home.root, home.cache, home.logs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_api_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    home = Home(tmp_path)
    key = home.api_key()
    assert len(key) >= 40
    assert home.api_key() == key
    assert stat.S_IMODE(home.api_key_file.stat().st_mode) == 0o600
    assert Home(tmp_path / "other").api_key() != key


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"a b\x00" * 20])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    home = Home(tmp_path)
    home.api_key_file.write_bytes(content)
    home.api_key_file.chmod(0o600)
    with pytest.raises(UsageError, match="holds no API key"):
        home.api_key()


def test_what_a_node_writes_about_itself_comes_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.read_facts() is None
    facts = NodeFacts(os.getpid(), "desk", "http://127.0.0.1:8000", ("/ip4/127.0.0.1/tcp/1/p2p/x",), 1.5)
    home.write_facts(facts)
    assert home.read_facts() == facts
    home.node.write_text("{")
    assert home.read_facts() is None


def test_the_starts_of_earlier_runs_are_remembered(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.note_start(1.0) == frozenset()
    assert home.note_start(2.0) == {1.0}
    for start in range(3, 100):
        earlier = home.note_start(float(start))
    assert earlier == {float(start) for start in range(83, 99)}
    home.starts.write_bytes(b"{broken")
    assert home.note_start(100.0) == frozenset()
