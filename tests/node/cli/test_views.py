"""What status, peers and routes look like as text; pure functions."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from node.cli.shoal_process import Here

from shoal import Failover, Result, Route, RouteHop, RoutePrefill, Usage
from shoal.node.cli.check import Finding
from shoal.node.cli.layer_map import Holding, ModelMap, draw, maps_of
from shoal.node.cli.moments import moment, seconds
from shoal.node.cli.output import Output
from shoal.node.cli.peers import parts_of
from shoal.node.cli.route_view import route_lines
from shoal.node.cli.status_view import duration, status_lines
from shoal.node.cli.status_watch import TokenMeter, watch_status
from shoal.node.cli.table import table_lines
from shoal.swarm.errors import SwarmUnreachable
from shoal.swarm.identifiers import PeerId


def peer(name: str, start: int, stop: int, layers: int = 8, me: bool = False) -> dict[str, Any]:
    item = {
        "model": "m" * 64,
        "name": "tiny",
        "layers": "some",
        "start": start,
        "stop": stop,
        "of_layers": layers,
        "dtype": "float32",
        "step_ms": 1.5,
        "sessions": 0,
        "free_tokens": 100,
    }
    return {"peer": f"12D3{name}", "name": name, "me": me, "version": "1", "rtt_ms": None, "hosted": [item]}


def bars(lines: list[str]) -> list[str]:
    return [line.replace("(this node)", "").split()[1] for line in lines[1:-1]]


def test_each_peer_has_a_bar_over_the_units_it_holds() -> None:
    (model,) = maps_of([peer("ana", 0, 5, me=True), peer("ben", 5, 10)])
    lines = draw(model)
    assert bars(lines) == ["█" * 15 + "·" * 15, "·" * 15 + "█" * 15]
    assert lines[-1].split()[1:] == ["1"] * 10


def test_a_unit_that_nobody_holds_is_marked() -> None:
    (model,) = maps_of([peer("ana", 0, 5), peer("ben", 6, 10)])
    assert draw(model)[-1].split()[1:] == ["1"] * 5 + ["!"] + ["1"] * 4


@pytest.mark.parametrize("layers", [40, 70, 71, 126, 500])
def test_a_single_gap_shows_in_a_model_of_any_depth(layers: int) -> None:
    gap = layers // 2
    model = ModelMap("deep", layers, (Holding("a", 0, gap, "x"), Holding("b", gap + 1, layers + 2, "y")))
    lines = draw(model)
    assert lines[-1].count("!") == 1
    assert {len(bar) for bar in bars(lines)} == {len(bars(lines)[0])}
    assert len(lines[-1]) <= 100


def test_more_than_nine_holders_are_a_plus() -> None:
    model = ModelMap("m", 2, tuple(Holding(f"p{i}", 0, 4, "all") for i in range(12)))
    assert set(draw(model)[-1].split()[1:]) == {"+"}


def test_models_are_apart() -> None:
    other = peer("cleo", 0, 4, layers=2)
    other["hosted"][0] |= {"model": "n" * 64, "name": "another"}
    assert [model.model for model in maps_of([peer("ana", 0, 10), other])] == ["another", "tiny"]


STATUS: dict[str, Any] = {
    "name": "ana",
    "peer": "12D3ana",
    "version": "0.1.0",
    "uptime_s": 75.0,
    "swarm": {"name": "s", "id": "x", "public": False, "owner": "12D3ana", "mine": True},
    "network": {"addresses": [], "reachable": None, "loopback": False, "peers": 1},
    "device": "cpu",
    "hosted": [
        {
            "model": "m" * 64,
            "name": "tiny",
            "layers": "embed+0:4",
            "of_layers": 8,
            "dtype": "float32",
            "step_ms": 2.0,
            "sessions": 1,
            "queue": 0,
            "tokens": 300,
            "free_tokens": 50,
        }
    ],
    "sessions": [{"session": "abcd1234", "driver": "12D3ben", "held": 17}],
    "peers": [peer("ana", 0, 5, me=True), peer("ben", 0, 5)],
}


def test_status_names_gaps_sessions_and_speed() -> None:
    text = "\n".join(status_lines(STATUS, {"m" * 64: 42.0}))
    for words in ("private; you own it", "up 1 min 15 s", "!", "42.0", "abcd1234", "ben"):
        assert words in text
    assert "not dialled by anybody yet" in text
    here = {"addresses": [], "reachable": True, "loopback": True, "peers": 1}
    alone = "\n".join(status_lines({**STATUS, "network": here}))
    assert "this machine only" in alone
    assert "outside" not in alone
    assert "no sessions" in "\n".join(status_lines({**STATUS, "sessions": [], "hosted": []}))


def test_status_and_peers_tell_a_change_of_layers() -> None:
    coming = {"model": "m" * 64, "name": "tiny", "layers": "4:8+head", "dtype": "float32", "settled": True}
    waiting = {"sessions": 3, "moved": 1, "ended": 0, "waiting": 2, "stranded": ""}
    move = {
        "name": "tiny",
        "before": "embed+0:4",
        "layers": "4:8+head",
        "reason": "nobody holds head",
        "stage": "handing over",
        "sessions": waiting,
    }
    lines = status_lines({**STATUS, "moving": move})
    (line,) = [line for line in lines if line.startswith("moving")]
    assert line.endswith("from embed+0:4 to 4:8+head (nobody holds head); handing over, 2 sessions still here")
    (held,) = parts_of({**peer("ana", 0, 5), "coming": [coming]})
    assert held["layers"] == "some (moves to 4:8+head)"
    (held,) = parts_of({**peer("ana", 0, 5), "coming": [{**coming, "settled": False}]})
    assert held["layers"] == "some"
    (loading,) = parts_of({**peer("ana", 0, 5), "hosted": [], "coming": [coming]})
    assert loading["layers"] == "(moves to 4:8+head)"
    assert parts_of({**peer("ana", 0, 5), "hosted": []}) == [{}]


def test_watching_into_a_pipe_names_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    class Node:
        def __init__(self) -> None:
            self.looks = 0

        def get(self, _: str) -> dict[str, Any]:
            self.looks += 1
            if self.looks > 2:
                raise SwarmUnreachable("gone")
            return STATUS

    with pytest.raises(SwarmUnreachable):
        watch_status(Node(), Output(json=False), 0.01)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert out.count("private; you own it") == 2
    assert "q ends" not in out


def test_tokens_per_second_come_from_two_looks() -> None:
    meter = TokenMeter()
    assert meter.rates([{"model": "m", "tokens": 100}], 10.0) == {}
    assert meter.rates([{"model": "m", "tokens": 150}], 12.0) == {"m": 25.0}
    assert meter.rates([{"model": "m", "tokens": 0}], 13.0) == {"m": 0.0}  # the node was started again


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.9, "5 s"), (75, "1 min 15 s"), (3700, "1 h 1 min"), (93784, "1 d 2 h"), (0, "0 s")]
)
def test_durations_read_easily(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_columns_line_up_and_numbers_stand_right() -> None:
    assert table_lines(["name", "ms"], [["a", 1.25], ["long one", None], ["b", 100.0]]) == [
        "name         ms",
        "a           1.2",
        "long one      -",
        "b         100.0",
    ]
    assert table_lines(["name", "ms"], []) == ["name  ms"]


def test_a_route_tells_hops_and_failovers() -> None:
    ana, ben, cleo = (PeerId(f"12D3KooW{'x' * 36}{name:>8}") for name in ("ana", "ben", "cleo"))
    route = Route(
        [RouteHop(ana, "ana", "embed+0:4", 20, 1.5, 0.1), RouteHop(cleo, "cleo", "4:8+head", 20, 2.5, 0.2)],
        [Failover(ben, "4:8+head", "the stream broke", 0.25, (cleo,))],
        0.1,
        2.0,
        [RoutePrefill((ben,), ("ben",), ("embed+0:8",), 640, 900, "ben was lost")],
    )
    result = Result("text", (1, 2), "length", Usage(5, 20), route, (), "tiny", 7)
    text = "\n".join(route_lines(result))
    for words in ("5 tokens in, 20 out (length)", "10.0 tokens/s", "embed+0:4", "2.5", "after 0.25 s", "seed 7"):
        assert words in text
    assert f"prefill: 640 of 900 positions were computed by ben ({ben[-8:]}) embed+0:8; ben was lost" in text


@pytest.fixture
def nepal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "NPT-5:45")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("nepal")
def test_times_are_read_with_their_unit_and_told_to_the_second() -> None:
    assert [seconds("--ttl", text) for text in ("90s", "30m", "1.5h", "7d")] == [90, 1800, 5400, 604800]
    assert moment(1_800_000_005.0) == "2027-01-15 13:45:05 NPT"


def test_the_summary_of_the_doctor_is_data_too(shoal: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.node.cli.check.made", lambda name, _: Finding(name, "ok", "fine"))
    ran = shoal("doctor")
    assert ran.out.splitlines()[-1] == "All is well."
    assert ran.err == ""
