"""What lies in the KV cache where nobody has written yet (any bits, NaN too) never reaches a result."""

from pathlib import Path

import pytest
import torch
from node.engine_chain import CPU, local_model
from node.tiny_models import make_model, save_model

from shoal.node.attention_plan import AttentionPlan, Piece
from shoal.node.kv_cache import PagedCache
from shoal.node.shard import Shard
from shoal.swarm.units import whole

LENGTHS = (9, 30, 17)


@torch.inference_mode()
def poison(shard: Shard, cache: PagedCache) -> None:
    """Every place of every layer's pool holds NaN, as fresh memory may."""
    room = cache.reserve(1)
    shard.run(shard.span, torch.tensor([1]), shard.plan(cache, (Piece(room, 0, 1),)), ())
    cache.release(room)
    for layer in range(shard.manifest.layers):
        for pool in cache._pools[layer]:  # noqa: SLF001
            pool.fill_(torch.nan)


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt-oss"])
def test_sessions_of_different_lengths_see_their_own_positions_only(family: str, gathers: bool, tmp_path: Path) -> None:
    model = local_model(save_model(make_model(family), tmp_path / "model"), tmp_path / "cache")
    shard = Shard.load(model, whole(model.manifest.layers), "float32", CPU)
    cache = shard.new_cache(1024)
    poison(shard, cache)
    cache.reserve(64)  # the first page stays unwritten
    rooms = [cache.reserve(64) for _ in LENGTHS]
    for room, length in zip(rooms, LENGTHS, strict=True):
        shard.run(shard.span, torch.arange(length) % 200, shard.plan(cache, (Piece(room, 0, length),)), ())
        room.length = length
    plan = AttentionPlan(cache, [Piece(room, room.length, 1) for room in rooms], gathers=gathers)
    logits = shard.run(shard.span, torch.tensor([3, 1, 4]), plan, (0, 1, 2))
    assert torch.isfinite(logits).all()
