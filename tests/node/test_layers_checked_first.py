"""Layers that a model does not have are named before a swarm is founded or an invite is used up."""

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from shoal.node.options import BY_NEED, NodeOptions
from shoal.node.swarm_setup import check_layers
from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home


@pytest.fixture
def options(tmp_path: Path) -> NodeOptions:
    return NodeOptions(home=Home(tmp_path / "home"), name="ana", model="novels-6m", layers="4:9")


def test_wrong_layers_of_a_model_that_lies_here_are_refused(options: NodeOptions) -> None:
    for given in (options, replace(options, invite="shoal1:x"), replace(options, model=BY_NEED)):
        with pytest.raises(UsageError, match=r"4:9 are out of range: the model has layers 0:8"):
            anyio.run(check_layers, given)
    assert not options.home.root.exists() or not options.home.swarm.exists()


def test_what_only_the_swarm_or_a_hub_knows_is_looked_at_later(options: NodeOptions) -> None:
    for given in (
        replace(options, layers="4:8"),
        replace(options, layers=None),
        replace(options, model=None),
        replace(options, model="sparrow"),
        replace(options, model=BY_NEED, invite="shoal1:x"),
    ):
        anyio.run(check_layers, given)
