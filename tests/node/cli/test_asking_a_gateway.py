"""Commands against the real HTTP surface of a node whose swarm is scripted."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from live_gateway import KEY, live_gateway
from node.cli.shoal_process import Here, run
from novels_text import STORY, repeats, scripted_novels, tells

from shoal.swarm.errors import OutOfMemory, Refused, StreamBroken
from shoal.swarm.home import Home, NodeFacts
from shoal.swarm.identifiers import PeerId
from shoal.swarm.node_lock import NodeLock
from shoal.swarm.text.scripted_source import ScriptedSource

ANA = "12D3KooWNrzG1ik6Hongn2e3hbfqsVD8oUCj6MHT67EspTLPzPCh"
BEN = "12D3KooWQk1oCDL2swLghzbqcS79q8QZTbczfLz5PeqWTgDe55FB"
LINE = "shoal1:an-invite"


def peer(peer_id: str, name: str, start: int, stop: int, layers: str) -> dict[str, Any]:
    item = {"model": "m" * 64, "name": "novels-6m", "layers": layers, "start": start, "stop": stop, "of_layers": 8}
    load = {"dtype": "float32", "step_ms": 1.0, "sessions": 2, "free_tokens": 9}
    me = name == "ana"
    hosted = [item | load]
    return {
        "peer": peer_id,
        "name": name,
        "me": me,
        "version": "0.1.0",
        "rtt_ms": None if me else 1.5,
        "hosted": hosted,
        "expires_in_s": 20.0,
    }


class ScriptedNode:
    """A node that owns its swarm and remembers what it was asked."""

    def __init__(self, owner: bool = True) -> None:
        self.owner = owner
        self.asked: list[tuple[str, Any]] = []
        self.tokens = 0
        self.leaving: dict[str, Any] | None = None

    async def status(self) -> dict[str, Any]:
        self.tokens += 50
        return {
            "schema": 1,
            "name": "ana",
            "peer": ANA,
            "version": "0.1.0",
            "uptime_s": 5.0,
            "swarm": {"name": "novel readers", "id": "s", "public": False, "owner": ANA, "mine": True},
            "network": {"addresses": [], "reachable": True, "loopback": False, "peers": 1},
            "device": "cpu",
            "hosted": [
                {
                    "model": "m" * 64,
                    "name": "novels-6m",
                    "layers": "embed+0:4",
                    "of_layers": 8,
                    "dtype": "float32",
                    "step_ms": 1.0,
                    "sessions": 0,
                    "queue": 0,
                    "tokens": self.tokens,
                    "free_tokens": 9,
                }
            ],
            "sessions": [],
            "leaving": self.leaving,
            "peers": await self.peers(),
        }

    async def peers(self) -> list[dict[str, Any]]:
        return [peer(ANA, "ana", 0, 5, "embed+0:4"), peer(BEN, "ben", 5, 10, "4:8+head")]

    async def invites(self) -> list[dict[str, Any]]:
        return [{"id": "i1", "state": "used", "created_at": 0.0, "expires_at": 1e9, "used_by": BEN}]

    async def create_invite(self, ttl_s: float, name: str) -> dict[str, Any]:
        if not self.owner:
            raise Refused("only the owner of the swarm can invite and revoke; ask the one who invited you")
        self.asked.append(("invite", ttl_s))
        return {"invite": LINE, "expires_at": 1e9, "name": name, "single_use": True}

    async def revoke_invite(self, invite: str) -> bool:
        self.asked.append(("revoke invite", invite))
        return invite == "i1"

    async def revoke_peer(self, peer: PeerId) -> bool:
        self.asked.append(("revoke peer", peer))
        return peer == BEN

    async def shutdown(self, drain_s: float | None) -> None:
        self.asked.append(("shutdown", drain_s))


@contextmanager
def node_of(home: Path, source: ScriptedSource, node: ScriptedNode | None = None, key: str = KEY) -> Iterator[str]:
    """A gateway that passes for the node of this home."""
    place = Home(home)
    place.prepare()
    place.api_key_file.write_text(key)
    place.api_key_file.chmod(0o600)
    with live_gateway(source, control=node or ScriptedNode()) as address, NodeLock(place.lock, "ana"):
        place.write_facts(NodeFacts(os.getpid(), "ana", address, (), 1.0))
        yield address


def test_generate_prints_the_text_and_nothing_else(shoal: Here) -> None:
    with node_of(shoal.home, scripted_novels()):
        ran = shoal("generate", "Once")
    assert (ran.code, ran.out, ran.err) == (0, STORY + "\n", "")


def test_generate_in_json_gives_pieces_and_a_result(shoal: Here) -> None:
    with node_of(shoal.home, scripted_novels()):
        ran = shoal("generate", "Once", "--json", "--logprobs", "1", "--seed", "5", "--route")
    *pieces, result = ran.events
    assert {event["event"] for event in pieces} == {"piece"}
    assert all(event["schema"] == 1 for event in ran.events)
    assert "".join(piece["text"] for piece in pieces) == STORY == result["text"]
    assert result["event"] == "result"
    assert result["seed"] == 5
    assert result["usage"]["completion_tokens"] >= len(result["ids"]) == len(result["logprobs"])
    assert {"hops", "failovers", "first_token_s", "total_s"} <= set(result["route"])


def test_options_reach_the_sampler(shoal: Here) -> None:
    source = scripted_novels()
    with node_of(shoal.home, source):
        ran = shoal("generate", "x", "-n", "9", "-t", "0.5", "--top-p", "0.9", "--top-k", "7", "--min-p", "0.1",
                    "--repetition-penalty", "1.1", "--seed", "3", "--max-hops", "4", "--exclude", BEN,
                    "--prefill", "never")  # fmt: skip
    assert ran.code == 0
    (asked,) = source.requests
    sampling = asked.sampling
    assert (asked.max_new_tokens, asked.max_hops, asked.exclude, asked.prefill) == (9, 4, {BEN}, "never")
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert (sampling.repetition_penalty, sampling.seed) == (1.1, 3)


def test_stop_ends_the_text_before_it(shoal: Here) -> None:
    with node_of(shoal.home, scripted_novels()):
        ran = shoal("generate", "x", "--stop", "THE END", "--stop", "never")
    assert ran.out.rstrip() == STORY.split("THE END")[0].rstrip()


def test_route_goes_to_stderr(shoal: Here) -> None:
    with node_of(shoal.home, scripted_novels()):
        ran = shoal("generate", "x", "--route")
    assert ran.out == STORY + "\n"
    assert "tokens in" in ran.err


@pytest.mark.network
def test_a_prompt_comes_from_stdin_and_a_chat_from_a_pipe(tmp_path: Path) -> None:
    home = tmp_path / "home"
    source = scripted_novels()
    with node_of(home, source):
        told = run("generate", "-", "--home", str(home), stdin="Once upon\n")
        chatted = run(
            "chat", "-t", "0", "--home", str(home), stdin="Hello\n\n/route\nand\\\nthen?\n/history\n/quit\nnever\n"
        )
    assert told.out == chatted.out.splitlines()[0] + "\n" == STORY + "\n"
    assert chatted.out == 2 * (STORY + "\n")
    assert "user: and\nthen?" in chatted.err
    assert ">>>" not in chatted.out + chatted.err
    assert len(source.requests) == 3


def test_chat_varies_and_generate_does_not(shoal: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scripted_novels()
    with node_of(shoal.home, source):
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
        shoal("chat", "-n", "3", "--system", "Be short.")
        shoal("generate", "x", "-n", "3")
    assert [asked.sampling.temperature for asked in source.requests] == [0.8, 0.0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "x", "--model", "nonsense"], 5, "nonsense"),
        (["generate", "word " * 3000], 2, "context"),
        (["generate", "x", "--max-tokens", "5000"], 2, "context"),
        (["generate", "x", *["--stop", "y"] * 40], 2, "stop"),
        (["peers", "revoke", "nobody"], 2, "nobody"),
        (["peers", "revoke", ANA], 2, ANA),
        (["invite", "revoke", "i9"], 2, "i9"),
        (["invite", "revoke", "../status"], 2, "../status"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_refused_request_has_its_code_and_line(shoal: Here, arguments: list[str], code: int, words: str) -> None:
    with node_of(shoal.home, scripted_novels()):
        ran = shoal(*arguments)
    assert ran.code == code
    assert words in ran.complaint


def test_missing_layers_are_named(shoal: Here) -> None:
    with node_of(shoal.home, scripted_novels(missing="layers 4:8")):
        ran = shoal("generate", "x")
        listed = shoal("models")
    assert ran.code == 5
    assert "4:8" in ran.complaint
    assert "no, missing layers 4:8" in listed.out


@pytest.mark.parametrize(("error", "code"), [(OutOfMemory("the cache is full"), 6), (StreamBroken("the peer died"), 3)])
def test_an_answer_that_breaks_keeps_what_came_and_says_why(shoal: Here, error: Exception, code: int) -> None:
    with node_of(shoal.home, scripted_novels(tells("It was a dark", error))):
        ran = shoal("generate", "x")
    assert ran.code == code
    assert ran.out.startswith("It was")
    assert str(error) in ran.complaint


def test_without_a_limit_a_long_prompt_gets_what_room_is_left(shoal: Here) -> None:
    source = scripted_novels(repeats(), max_context=64)
    with node_of(shoal.home, source):
        ran = shoal("generate", "a short prompt", "--json")
    assert ran.code == 0
    usage = ran.events[-1]["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == 64


def test_the_wrong_key_is_refused(shoal: Here) -> None:
    with node_of(shoal.home, scripted_novels(), key="another-key-of-some-length"):
        looked = shoal("status", "--json")
        asked = shoal("generate", "x")
    assert (looked.code, asked.code) == (4, 4)
    assert "key" in looked.complaint
    assert "key" in asked.complaint
    assert looked.events[0]["exit_code"] == 4


def test_another_nodes_api_is_asked_with_its_own_key(shoal: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    with live_gateway(scripted_novels()) as address:
        refused = shoal("generate", "x", "--api", address)
        monkeypatch.setenv("SHOAL_API_KEY", KEY)
        told = shoal("generate", "x", "--api", address)
    assert refused.code == 4
    assert told.out == STORY + "\n"
    assert shoal("generate", "x", "--api", "http://127.0.0.1:9").code == 3


def test_status_and_peers_show_the_node(shoal: Here) -> None:
    with node_of(shoal.home, scripted_novels()):
        said = shoal("status")
        text, events = said.out, shoal("status", "--json").events
        listed, peers = shoal("peers").out, shoal("peers", "--json").events
        models = shoal("models", "--json").events
    assert "novel readers (private; you own it)" in text, said.err
    assert events[0]["event"] == "status"
    assert events[0]["swarm"]["name"] == "novel readers"
    assert BEN in listed
    assert [(event["event"], event["name"]) for event in peers] == [("peer", "ana"), ("peer", "ben")]
    assert models[0]["event"] == "model"
    assert models[0]["missing"] == ""


def test_invites_are_made_listed_and_revoked(shoal: Here) -> None:
    node = ScriptedNode()
    with node_of(shoal.home, scripted_novels(), node):
        assert shoal("invite", "--ttl", "2h").out == LINE + "\n"
        assert shoal("invite", "create", "--json").events[0]["invite"] == LINE
        assert BEN in shoal("invite", "list").out
        assert shoal("invite", "revoke", "i1").code == 0
        assert shoal("peers", "revoke", "ben", "--json").events == [{"schema": 1, "event": "revoked", "peer": BEN}]
    week = 7 * 86400.0
    assert node.asked == [("invite", 7200.0), ("invite", week), ("revoke invite", "i1"), ("revoke peer", BEN)]


def test_a_member_cannot_invite(shoal: Here) -> None:
    with node_of(shoal.home, scripted_novels(), ScriptedNode(owner=False)):
        ran = shoal("invite")
    assert ran.code == 4
    assert "owner" in ran.complaint


def test_down_gives_up_after_its_time_and_says_what_to_do(shoal: Here) -> None:
    node = ScriptedNode()  # it hears, and does not stop
    with node_of(shoal.home, scripted_novels(), node):
        ran = shoal("down", "--timeout", "0.3")
    assert node.asked == [("shutdown", None)]
    assert ran.code == 1
    assert f"kill -9 {os.getpid()}" in ran.complaint


def test_down_with_drain_says_how_far_the_node_is(shoal: Here) -> None:
    node = ScriptedNode()
    node.leaving = {"sessions": 3, "moved": 1, "ended": 1, "waiting": 1, "stranded": "no peer holds layers 4:8"}
    with node_of(shoal.home, scripted_novels(), node):
        ran = shoal("down", "--drain", "--drain-limit", "0.2", "--timeout", "0.3")
    assert node.asked[0] == ("shutdown", 0.2)
    assert "1 of 3 sessions moved, 1 ended, 1 still here (no successor: no peer holds layers 4:8)" in ran.err
    assert "the time is up; 1 sessions were still here" in ran.err
    assert ran.code == 1


@pytest.mark.network
def test_watching_in_json_gives_one_status_a_look_until_interrupted(tmp_path: Path) -> None:
    import signal

    from node.cli.shoal_process import spawn

    home = tmp_path / "home"
    with node_of(home, scripted_novels()):
        process = spawn(["status", "--watch", "--json", "--interval", "0.1", "--home", str(home)])
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == ""
    assert all('"event":"status"' in line for line in lines)
    assert '"tokens_per_s":{"' in lines[2]
