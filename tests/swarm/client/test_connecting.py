import os
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from live_gateway import KEY, live_gateway
from novels_text import scripted_novels, tells

import shoal
from shoal.swarm.client.connect import _own_key
from shoal.swarm.home import Home, NodeFacts


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.find(tmp_path / "home")
    home.prepare()
    return home


def runs_at(home: Home, address: str) -> None:
    home.api_key_file.write_text(f"{KEY}\n")
    home.api_key_file.chmod(0o600)
    home.write_facts(NodeFacts(os.getpid(), "ada", address, (), 0.0))


def test_without_a_target_the_node_of_this_home_answers_with_its_own_key(home: Home) -> None:
    with live_gateway(scripted_novels(tells("and so on"))) as address:
        runs_at(home, address)
        with shoal.connect(home=home.root) as client:
            assert client.generate("x").text == "and so on"


def test_an_address_of_this_machine_gets_this_homes_key(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(home.root))
    with live_gateway(scripted_novels(tells("and so on"))) as address:
        runs_at(home, address)
        for form in (address, f"{address}/", f"{address}/v1", f"{address}/v1/"):
            with shoal.connect(form) as client:
                assert client.generate("x").text == "and so on"


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        ("http://127.0.0.1:8411", True),
        ("http://localhost:8411/v1", True),
        ("http://[::1]:8411", True),
        ("http://example.org:8411", False),
        ("http://127.0.0.1@example.org/", False),
        ("http://localhost.example.org", False),
    ],
)
def test_the_homes_key_goes_to_loopback_only(home: Home, address: str, ours: bool) -> None:
    runs_at(home, address)
    assert (_own_key(home, address) == KEY) is ours


def test_a_wrong_key_is_refused(home: Home) -> None:
    with (
        live_gateway(scripted_novels()) as address,
        shoal.connect(address, api_key="wrong", home=home.root) as client,
        pytest.raises(shoal.Refused, match="API key"),
    ):
        client.generate("x")


def test_a_home_without_node_and_swarm_is_told_what_to_do(home: Home) -> None:
    with pytest.raises(shoal.SwarmUnreachable, match="shoal up"):
        shoal.connect(home=home.root)


def test_the_file_of_a_killed_node_is_not_believed(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    runs_at(home, f"http://127.0.0.1:{port}")
    with pytest.raises(shoal.SwarmUnreachable, match="no node runs here"):
        shoal.connect(home=home.root)


@pytest.mark.parametrize("target", ["ftp://x", "localhost:8411", "", "novels-6m"])
def test_a_target_that_is_neither_address_nor_invite_is_refused(home: Home, target: str) -> None:
    with pytest.raises(shoal.UsageError, match="give an address"):
        shoal.connect(target, home=home.root)


def test_an_address_where_nobody_listens_is_unreachable(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with (
        shoal.connect(f"http://127.0.0.1:{port}", home=home.root) as client,
        pytest.raises(shoal.SwarmUnreachable, match="no shoal node answers"),
    ):
        client.models()


@pytest.fixture(
    params=[
        b"",
        b"not http at all\r\n\r\n",
        b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"choices": [{"text": "a"}]}\n\n',
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: [1, 2]\n\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\ndata: ",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops",
    ]
)
def strange_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Reads a request, says its bytes and hangs up."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(request.param)

    thread = Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.join(10)
    listening.close()


def test_a_server_that_does_not_speak_this_api_is_a_typed_error(strange_server: str, home: Home) -> None:
    with shoal.connect(strange_server, home=home.root) as client, pytest.raises(shoal.Unavailable):
        client.generate("x")
