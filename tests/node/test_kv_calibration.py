"""Calibration runs a model and gives a profile whose levels keep what their names say."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_levels import LEVELS
from shoal.compression.kv_profile import parse_profile
from shoal.node import kv_calibration
from shoal.node.kv_calibration import TARGET_KL, calibrate
from shoal.node.kv_quality import block_of, cached, coded_by, continuation, log_probabilities, measure


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=200,
        max_position_embeddings=512,
        initializer_range=0.15,
    )
    return LlamaForCausalLM(config).eval()


def documents(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 200, (140,), generator=generator) for _ in range(count)]


def test_a_cache_made_from_a_block_continues_as_the_model_does(model: LlamaForCausalLM) -> None:
    (ids,) = documents(1, 9)
    document = continuation(model, ids)
    with torch.no_grad():
        whole = torch.log_softmax(model(input_ids=ids[None]).logits[0, -64:], -1)
    assert document.exact.shape.tokens == 140 - 64
    # The cache is rounded to bfloat16 on the way.
    assert float((whole.exp() * (whole - document.log_probabilities)).sum(-1).mean()) < 1e-3
    again = log_probabilities(model, document.exact, document.tokens)
    assert torch.equal(again, document.log_probabilities)


@pytest.mark.parametrize(
    ("backward", "joint", "together"),
    [(True, True, False), (False, False, False), (True, True, True), (False, False, True)],
)
def test_levels_keep_their_divergence_on_text_that_the_fit_did_not_see(
    model: LlamaForCausalLM, backward: bool, joint: bool, together: bool
) -> None:
    profile = calibrate(model, documents(5, 1), documents(3, 2), joint=joint, together=together, backward=backward)
    held_out = [continuation(model, ids) for ids in documents(4, 5)]
    bits = []
    for level in LEVELS:
        quality = measure(model, held_out, coded_by(profile, level))
        assert quality.kl < 3 * TARGET_KL[level]
        bits.append(quality.bits_per_value)
    assert bits == sorted(bits, reverse=True)
    assert bits[0] < 8
    assert parse_profile(profile.packed).digest == profile.digest


def test_the_same_text_gives_the_same_profile(model: LlamaForCausalLM) -> None:
    one, two = (calibrate(model, documents(3, 1), documents(1, 2)) for _ in range(2))
    assert one.packed == two.packed
    (frequencies,) = {b.numpy().tobytes() for n, b in model.named_buffers() if n.endswith(".inv_freq")}
    assert (one.inverse_frequencies == np.frombuffer(frequencies, np.float32)).all()


def test_the_profile_of_another_model_never_costs_more_than_the_raw_block(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_calibration, "_step_for", lambda *_: 0)
    own = calibrate(model, documents(6, 1), [])
    torch.manual_seed(4)
    other = calibrate(LlamaForCausalLM(replace_config(model)).eval(), documents(6, 1), [])
    with torch.no_grad():
        _, keys, values = cached(model, documents(1, 7)[0])
    block = block_of(keys, values)
    for profile in (own, other):
        payloads = encode_kv(block, "default", profile)
        decode_kv(payloads, block.shape, profile)
        assert sum(map(len, payloads)) <= block.shape.raw_bytes + 100 * len(payloads)
    assert own.digest != other.digest


def replace_config(model: LlamaForCausalLM) -> LlamaConfig:
    return LlamaConfig(**model.config.to_dict())
