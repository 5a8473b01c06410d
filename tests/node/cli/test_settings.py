"""Flag > environment > file > default, and one line for what is wrong."""

from pathlib import Path

import pytest
from node.cli.shoal_process import Here

from shoal.node.cli.node_choice import node_options
from shoal.node.settings import load_settings
from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home


@pytest.fixture
def file(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SHOAL_THREADS", raising=False)
    home.mkdir()
    return home / "config.toml"


def test_a_flag_beats_the_environment_which_beats_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(file.parent)
    assert load_settings(home, {"threads": None}).threads is None
    file.write_text("threads = 2\n")
    assert load_settings(home, {"threads": None}).threads == 2
    monkeypatch.setenv("SHOAL_THREADS", "3")
    assert load_settings(home, {"threads": None}).threads == 3
    assert load_settings(home, {"threads": 4}).threads == 4


def test_a_node_takes_other_layers_unless_told_not_to(file: Path) -> None:
    home = Home(file.parent)
    assert node_options(home, {}, None).rebalance
    assert not node_options(home, {"rebalance": False}, None).rebalance
    file.write_text("rebalance = false\n")
    assert not node_options(home, {}, None).rebalance
    assert node_options(home, {"rebalance": True}, None).rebalance


def test_lists_are_written_in_each_place_own_way(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(file.parent)
    file.write_text('relay = ["/ip4/1.2.3.4/tcp/1/p2p/a", "/ip4/1.2.3.4/tcp/2/p2p/b"]\n')
    assert len(load_settings(home, {"relay": []}).relay) == 2
    monkeypatch.setenv("SHOAL_RELAY", "/dns4/x/tcp/1/p2p/a, /dns4/y/tcp/1/p2p/b,")
    assert load_settings(home, {"relay": []}).relay == ("/dns4/x/tcp/1/p2p/a", "/dns4/y/tcp/1/p2p/b")
    assert load_settings(home, {"relay": ["/dns4/z/tcp/1/p2p/c"]}).relay == ("/dns4/z/tcp/1/p2p/c",)


def test_other_variables_of_shoal_are_not_settings(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_VENV", "/somewhere")
    assert load_settings(Home(file.parent), {}).model == "auto"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thread = 2", "did you mean 'threads'"),
        ("colour = 'red'", "no setting 'colour'"),
        ("[node]\nthreads = 2", "no setting 'node'"),
        ("threads = 'many'", "threads"),
        ("threads = 0", "threads"),
        ("threads =", "not TOML"),
        ("port = 70000", "port"),
        ("\x00", "not TOML"),
    ],
)
@pytest.mark.parametrize("command", [["up"], ["generate", "hi"], ["chat"]], ids=" ".join)
def test_a_wrong_file_is_named_in_one_line(shoal: Here, file: Path, text: str, words: str, command: list[str]) -> None:
    file.write_text(text)
    ran = shoal(*command)
    assert ran.code == 2
    assert "config.toml" in ran.complaint
    assert words in ran.complaint


def test_a_file_of_another_encoding_is_refused(file: Path) -> None:
    file.write_bytes(b"name = '\xff\xfe'")
    with pytest.raises(UsageError, match=r"config\.toml"):
        load_settings(Home(file.parent), {})


def test_a_wrong_variable_is_named(shoal: Here, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_PORT", "any")
    ran = shoal("up")
    assert ran.code == 2
    assert ran.complaint.startswith("SHOAL_PORT")
