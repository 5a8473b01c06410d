"""How long a decode step takes, measured before the first session so that the node's record can say it."""

from collections.abc import Callable

import torch

from shoal.swarm.units import has_embed

from .attention_plan import Piece
from .kv_cache import PagedCache
from .shard import Shard

_TRIES = 3
PROMPT_POSITIONS = 64  # of the piece of a prompt that is measured
LEAST_PROMPT, LONGEST_S = 16, 2.0


def step_ms(shard: Shard, cache: PagedCache, clock: Callable[[], float]) -> float:
    """One position through the whole span, the best of three.

    raises: OutOfMemory when the cache's pools do not fit
    """
    room = cache.reserve(1)
    tokens = has_embed(shard.span)
    shape = (1,) if tokens else (1, shard.manifest.hidden)
    x = torch.zeros(shape, dtype=torch.long if tokens else shard.torch_dtype, device=shard.device)
    times = []
    for _ in range(_TRIES):
        began_s = clock()
        finished(shard.run(shard.span, x, shard.plan(cache, (Piece(room, 0, 1),)), (0,)))
        times.append(clock() - began_s)
    cache.release(room)
    return min(times) * 1e3


def prefill_ms(shard: Shard, cache: PagedCache, step_ms: float, clock: Callable[[], float]) -> float:
    """A position among many of a prompt, through the whole span. step_ms: a slow shard is measured with fewer

    raises: OutOfMemory when the cache has no room for so many
    """
    count = max(LEAST_PROMPT, min(PROMPT_POSITIONS, int(LONGEST_S * 1e3 / max(step_ms, 1e-3))))
    room = cache.reserve(count)
    try:
        tokens = has_embed(shard.span)
        shape = (count,) if tokens else (count, shard.manifest.hidden)
        x = torch.zeros(shape, dtype=torch.long if tokens else shard.torch_dtype, device=shard.device)
        times = []
        for _ in range(2):  # the first also makes what is made once
            began_s = clock()
            finished(shard.run(shard.span, x, shard.plan(cache, (Piece(room, 0, count),)), (count - 1,)))
            times.append(clock() - began_s)
            if times[0] > LONGEST_S / 4:
                break
    finally:
        cache.release(room)
    return min(times) * 1e3 / count


def finished(out: torch.Tensor) -> torch.Tensor:
    """GPU work is over when this returns, so that times are times and errors come here."""
    if out.device.type == "cuda":
        torch.cuda.synchronize(out.device)
    return out
