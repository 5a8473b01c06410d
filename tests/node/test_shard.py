"""A shard as a function: sub-spans, the lean layer, the gathered batch of a GPU, smaller dtypes, long rotary tables."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from node.engine_chain import CPU, local_model
from node.tiny_models import VOCABULARY, make_model, save_model

from shoal.node import shard as shard_module
from shoal.node.attention_plan import AttentionPlan, Piece
from shoal.node.kv_cache import Reservation
from shoal.node.lean_layer import LeanLayer
from shoal.node.shard import Shard
from shoal.swarm.errors import LocalFault
from shoal.swarm.units import Span

IDS = [(13 * i + 2) % VOCABULARY for i in range(37)]
WHOLE = Span(0, 6)


def loaded(family: str, folder: Path, span: Span = WHOLE, dtype: str = "float32", **changes: object) -> Shard:
    save_model(make_model(family, **changes), folder / "model")
    return Shard.load(local_model(folder / "model", folder / "cache"), span, dtype, CPU)


def logits_of(shard: Shard, pieces: Sequence[int], *, gathers: bool = False) -> torch.Tensor:
    """The last row's logits after feeding IDS in pieces."""
    cache = shard.new_cache(256)
    room = cache.reserve(len(IDS))
    out = torch.empty(0)
    for count in pieces:
        plan = AttentionPlan(cache, (Piece(room, room.length, count),), gathers=gathers)
        ids = torch.tensor(IDS[room.length : room.length + count])
        out = shard.run(WHOLE, ids, plan, (count - 1,))
        room.length += count
    return out[0]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt-oss"])
def test_pieces_of_any_size_give_the_same_logits(family: str, tmp_path: Path) -> None:
    shard = loaded(family, tmp_path)
    whole = logits_of(shard, [37])
    for pieces in ([36, 1], [1] * 37, [5, 13, 1, 18]):
        assert torch.allclose(logits_of(shard, pieces), whole, atol=2e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt-oss", "qwen3"])
def test_the_gathered_batch_of_a_gpu_gives_what_single_steps_give(family: str, tmp_path: Path) -> None:
    shard = loaded(family, tmp_path)
    results = []
    for gathers in (False, True):
        cache = shard.new_cache(1024)
        fillers = [cache.reserve(64) for _ in range(3)]
        cache.release(fillers[1])  # so that one session's pages are scattered
        rooms = [cache.reserve(64), cache.reserve(900 - 4 * 64), cache.reserve(40)]
        for room, length in zip(rooms, (9, 30, 17), strict=True):
            shard.run(WHOLE, torch.tensor(IDS[:length]), shard.plan(cache, (Piece(room, 0, length),)), ())
            room.length = length
        plan = AttentionPlan(cache, [Piece(room, room.length, 1) for room in rooms], gathers=gathers)
        results.append(shard.run(WHOLE, torch.tensor([3, 1, 4]), plan, (0, 1, 2)))
    assert torch.allclose(results[0], results[1], atol=2e-4 * float(results[0].abs().max()))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "qwen3"])
def test_steps_of_several_sessions_give_what_each_gives_alone(family: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 8}  # down: a weight in both orders
    shard = loaded(family, tmp_path, **wide)
    assert isinstance(shard.layers[0], LeanLayer) == (family != "gemma2")
    for lengths in ((9, 30), (9, 30, 17, 1, 5)):
        cache = shard.new_cache(1024)
        rooms = [cache.reserve(64) for _ in lengths]
        for room, length in zip(rooms, lengths, strict=True):
            shard.run(WHOLE, torch.tensor(IDS[:length]), shard.plan(cache, (Piece(room, 0, length),)), ())
            room.length = length
        steps, ids = [Piece(room, room.length, 1) for room in rooms], torch.arange(1, len(rooms) + 1)
        alone = [shard.run(WHOLE, ids[i : i + 1], shard.plan(cache, (step,)), (0,)) for i, step in enumerate(steps)]
        together = shard.run(WHOLE, ids, shard.plan(cache, steps), range(len(steps)))
        assert torch.allclose(together, torch.cat(alone), atol=1e-4 * float(together.abs().max()))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_lean_layer_gives_what_transformers_layer_gives(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"hidden_size": 512, "intermediate_size": 1100, "num_attention_heads": 8, "vocab_size": 1200}  # packed sizes
    lean = loaded(family, tmp_path, **wide)
    assert all(isinstance(layer, LeanLayer) for layer in lean.layers.values())
    monkeypatch.setattr(shard_module, "can_pack", lambda *_: False)
    plain = Shard.load(local_model(tmp_path / "model", tmp_path / "cache"), WHOLE, "float32", CPU)
    assert not any(isinstance(layer, LeanLayer) for layer in plain.layers.values())
    for pieces in ([37], [35, 1, 1]):
        expected = logits_of(plain, pieces)
        assert torch.allclose(logits_of(lean, pieces), expected, atol=1e-4 * float(expected.abs().max()))


def test_a_layer_that_changed_in_transformers_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.node.transformers_imports import import_quickly

    layer = import_quickly("transformers.models.llama.modeling_llama").LlamaDecoderLayer
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x, **rest: forward(self, x, **rest) * 1.01)
    shard = loaded("llama", tmp_path)
    assert not any(isinstance(layer, LeanLayer) for layer in shard.layers.values())


def test_a_shard_runs_any_span_inside_its_own_and_no_other(tmp_path: Path) -> None:
    shard = loaded("llama", tmp_path, Span(1, 5))
    cache = shard.new_cache(512)
    hidden = torch.ones(2, 64)

    def run(span: Span, x: torch.Tensor, room: Reservation) -> torch.Tensor:
        return shard.run(span, x, shard.plan(cache, (Piece(room, 0, 2),)), ())

    first, second = cache.reserve(2), cache.reserve(2)
    two = run(Span(3, 5), run(Span(1, 3), hidden, first), first)
    both = run(Span(1, 5), hidden, second)
    assert torch.allclose(two, both, atol=1e-5)
    with pytest.raises(LocalFault, match="not loaded here"):
        run(Span(0, 3), torch.tensor([1, 2]), first)


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.1), ("float16", 0.02)])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3-moe"])
def test_smaller_dtypes_stay_near_float32(family: str, dtype: str, error: float, tmp_path: Path) -> None:
    settings = {"initializer_range": 0.05}
    exact = logits_of(loaded(family, tmp_path, **settings), [36, 1])
    small = logits_of(Shard.load(local_model(tmp_path / "model", tmp_path / "cache"), WHOLE, dtype, CPU), [36, 1])
    assert small.dtype == torch.float32
    assert float((small - exact).norm() / exact.norm()) < error


def test_long_rotary_embeddings_are_chosen_by_the_room_that_a_session_reserves(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    model = make_model("phi3", rope_parameters=rope, original_max_position_embeddings=32, sliding_window=None)
    save_model(model, tmp_path / "model")
    shard = Shard.load(local_model(tmp_path / "model", tmp_path / "cache"), WHOLE, "float32", CPU)
    with torch.inference_mode():
        for length in (20, 37):  # below and above the original context
            expected = model(torch.tensor([IDS[:length]])).logits[0, -1]
            cache = shard.new_cache(256)
            room = cache.reserve(length)
            plan = shard.plan(cache, (Piece(room, 0, length),))
            got = shard.run(WHOLE, torch.tensor(IDS[:length]), plan, (length - 1,))[0]
            assert torch.allclose(got, expected, atol=2e-4 * float(expected.abs().max()))


def test_positions_beyond_the_first_block_of_the_rotary_table_are_right(tmp_path: Path) -> None:
    model = make_model("llama", max_position_embeddings=3000, num_hidden_layers=1)
    save_model(model, tmp_path / "model")
    shard = Shard.load(local_model(tmp_path / "model", tmp_path / "cache"), Span(0, 3), "float32", CPU)
    ids = torch.arange(1100) % VOCABULARY
    cache = shard.new_cache(1152)
    room = cache.reserve(1100)
    for start in (0, 1000):
        stop = min(1100, start + 1000)
        plan = shard.plan(cache, (Piece(room, start, stop - start),))
        got = shard.run(Span(0, 3), ids[start:stop], plan, (stop - start - 1,))[0]
        room.length = stop
    with torch.inference_mode():
        expected = model(ids[None]).logits[0, -1]
    assert torch.allclose(got, expected, atol=2e-4 * float(expected.abs().max()))
