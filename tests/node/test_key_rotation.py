"""What turns with the position in a model's keys is found out, whatever kind of rotation it is."""

from typing import Any

import numpy as np
import pytest
import torch
from node.tiny_models import VOCABULARY, make_model
from transformers import GPT2Config, GPT2LMHeadModel

from shoal.compression.kv_fitting import KvSample, unrotated
from shoal.node.key_rotation import key_rotation
from shoal.node.kv_calibration import TARGET_KL, calibrate
from shoal.node.kv_quality import cached, coded_by, continuation, measure, stacked
from shoal.node.transformers_imports import Untyped

TWO_KINDS = ["sliding_attention", "full_attention"] * 2
# Family to: its settings, rotated channels of a head, whether neighbours turn together, different layers.
KINDS: dict[str, tuple[dict[str, Any], int, bool, int]] = {
    "llama": ({}, 16, False, 1),
    "llama-scaled-rope": ({}, 16, False, 1),
    "qwen3": ({}, 32, False, 1),
    "gemma2": ({}, 16, False, 1),
    "gemma3": ({"layer_types": TWO_KINDS}, 16, False, 2),
    "phi": ({}, 8, False, 1),
    "gpt-neox": ({}, 4, False, 1),
    "cohere": ({}, 16, True, 1),
}


def keys_of(model: Untyped, ids: torch.Tensor) -> KvSample:
    with torch.no_grad():
        _, keys, values = cached(model, ids)
    return KvSample(stacked(keys), stacked(values))


def unrest(keys: np.ndarray) -> float:
    """Largest distance from the mean over positions, against the largest key."""
    return float(np.abs(keys - keys.mean(axis=1, keepdims=True)).max() / np.abs(keys).max())


@pytest.mark.parametrize("family", KINDS)
def test_keys_of_a_repeated_token_come_to_rest(family: str) -> None:
    settings, rotated, neighbours, kinds = KINDS[family]
    model = make_model(family, **settings)
    found = key_rotation(model)
    assert found.neighbours == neighbours
    assert found.inverse_frequencies.shape == (4, rotated // 2)
    assert len(np.unique(found.inverse_frequencies, axis=0)) == kinds
    sample = keys_of(model, torch.full((200,), 17))  # a token and positions that the search did not use
    turned_back = unrotated(KvSample(sample.keys[..., found.order], sample.values), found.inverse_frequencies)
    assert unrest(sample.keys) > 0.1
    assert unrest(turned_back) < 1e-3


def test_layers_without_rotation_are_told_from_those_with_it() -> None:
    model = make_model("llama")
    for layer in model.model.layers[1::2]:
        layer.self_attn.register_forward_pre_hook(without_rotation, with_kwargs=True)
    frequencies = key_rotation(model).inverse_frequencies
    assert [bool(row.any()) for row in frequencies] == [True, False, True, False]


def without_rotation(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    cosines, sines = kwargs["position_embeddings"]
    return args, {**kwargs, "position_embeddings": (torch.ones_like(cosines), torch.zeros_like(sines))}


def documents(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (140,), generator=generator) for _ in range(count)]


def without_rope() -> Untyped:
    torch.manual_seed(2)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY, n_positions=256, initializer_range=0.15)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3", "qwen3", "cohere", "phi"])
def test_every_kind_of_model_is_calibrated_to_its_level(family: str) -> None:
    model = without_rope() if family == "gpt2" else make_model(family, **KINDS[family][0])
    profile = calibrate(model, documents(4, 1), documents(3, 2))
    assert profile.inverse_frequencies.any() == (family != "gpt2")
    held_out = [continuation(model, ids) for ids in documents(3, 5)]
    quality = measure(model, held_out, coded_by(profile, "default"))
    assert quality.kl < 3 * TARGET_KL["default"]
    assert quality.bits_per_value < 8


def test_queries_are_weighed_as_their_norm_leaves_them() -> None:
    model = make_model("qwen3")
    plain = calibrate(model, documents(3, 1), documents(1, 2), backward=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(5)  # which the norm behind it undoes
    assert np.allclose(
        calibrate(model, documents(3, 1), documents(1, 2), backward=False).forward_matrices,
        plain.forward_matrices,
        rtol=0.05,
        atol=0.05 * float(np.abs(plain.forward_matrices).max()),
    )
