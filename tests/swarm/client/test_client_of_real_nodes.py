"""Two real nodes: the gateway of one of them and a thin client give the same result."""

from pathlib import Path

import pytest

import shoal
from shoal.node.local_swarm import create_invite, local_swarm

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
LAYOUT = {"front": ["--layers", "embed+0:4"], "back": ["--layers", "4:8+head"]}


def test_the_gateway_and_the_peers_give_the_same_text(tmp_path: Path) -> None:
    with local_swarm(tmp_path, LAYOUT) as nodes:
        front = nodes["front"]
        with shoal.connect(front.api, api_key=front.key) as client:
            through_gateway = client.generate("It was a dark and", max_tokens=24, logprobs=1)
            sampled = client.generate("It was a dark and", max_tokens=24, temperature=0.8, seed=7)
        with shoal.connect(create_invite(front), home=tmp_path / "thin") as client:
            straight = client.generate("It was a dark and", max_tokens=24, logprobs=1)
            again = client.generate("It was a dark and", max_tokens=24, temperature=0.8, seed=7)
            with client.stream("It was a dark and", max_tokens=2000) as stream:
                next(stream)
    assert straight.text == through_gateway.text != ""
    assert straight.ids == through_gateway.ids
    assert straight.usage == through_gateway.usage
    assert len(straight.logprobs) == 24
    assert again.text == sampled.text != straight.text
    for result in (straight, through_gateway):
        assert {hop.layers for hop in result.route.hops} == {"embed+0:4", "4:8+head"}
        assert result.route.failovers == []
        assert result.route.total_s > 0
