"""Which of the processes that torchrun started this one is."""

import os
from pathlib import Path

from .config import ConfigFile


def processes() -> int:
    """How many there are of this peer; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_follower() -> bool:
    """Not the first one, which is the peer."""
    return processes() > 1 and int(os.environ.get("RANK", "0")) > 0


def follow_first(file: ConfigFile, cache: Path) -> None:
    """Work for the first process until it is done. raises: as `worker_start.prepared`"""
    from .worker_sharding import ShardedParameters, ShardedSteps, follow
    from .worker_start import prepared

    ready = prepared(file, cache)
    assert isinstance(ready.parameters, ShardedParameters)
    assert isinstance(ready.steps, ShardedSteps)
    follow(ready.steps.ranks, ready.parameters, ready.steps)
    ready.steps.ranks.close()
