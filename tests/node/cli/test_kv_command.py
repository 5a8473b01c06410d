"""`shoal kv calibrate` makes a profile that compresses the caches of its model."""

import shutil
from pathlib import Path

import pytest
import torch
from node.cli.shoal_process import Here
from transformers import LlamaConfig, LlamaForCausalLM

from shoal.compression.kv_bitstream import decode_kv, encode_kv
from shoal.compression.kv_profile import parse_profile
from shoal.node.kv_quality import block_of, cached

NOVELS = Path(__file__).parents[3] / "node" / "embedded" / "novels-6m"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two small layers with the tokenizer of the embedded model."""
    folder = tmp_path / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=4096,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NOVELS / name, folder / name)
    return folder


def test_a_profile_is_written_and_serves_its_model(shoal: Here, model: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "made.kvprofile"
    text.write_text("".join(f"On day {day} the rain fell on {day % 13} roofs and nobody came. " for day in range(99)))
    ran = shoal(
        "kv", "calibrate", str(model), str(text), "--out", str(out), "--documents", "5", "--tokens", "128", "--json"
    )
    assert ran.code == 0
    (event,) = ran.events
    profile = parse_profile(out.read_bytes())
    assert event["event"] == "kv_profile"
    assert event["digest"] == profile.digest.hex()
    assert event["payload_bytes"] == out.stat().st_size
    with torch.no_grad():
        loaded = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
        _, keys, values = cached(loaded, torch.arange(100))
    block = block_of(keys, values)
    payloads = encode_kv(block, "default", profile)
    assert sum(map(len, payloads)) < block.shape.raw_bytes / 4
    assert decode_kv(payloads, block.shape, profile).shape == block.shape


def test_too_little_text_is_told_in_one_line(shoal: Here, model: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "made.kvprofile"
    text.write_text("Not much.")
    ran = shoal("kv", "calibrate", str(model), str(text), "--out", str(out))
    assert ran.code == 2
    assert "tokens of text" in ran.complaint
    assert not out.exists()


def test_what_cannot_be_calibrated_is_told_before_the_work(shoal: Here, model: Path, tmp_path: Path) -> None:
    text, binary, bare = tmp_path / "text.txt", tmp_path / "binary.txt", tmp_path / "bare"
    text.write_text("Some words. " * 400)
    binary.write_bytes(bytes(range(128, 256)))
    bare.mkdir()
    damaged = Path(shutil.copytree(model, tmp_path / "damaged"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused = {
        "model.safetensors": (damaged, text, tmp_path / "out"),
        "not text in UTF-8": (model, binary, tmp_path / "out"),
        "no folder": (model, text, tmp_path / "nowhere" / "out"),
        "bare": (bare, text, tmp_path / "out"),
    }
    for words, (folder, source, out) in refused.items():
        ran = shoal("kv", "calibrate", str(folder), str(source), "--out", str(out), "--documents", "5")
        assert ran.code == 2
        assert words in ran.complaint
        assert not out.exists()


def test_stretches_that_cannot_be_are_told_in_one_line(shoal: Here, model: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "made.kvprofile"
    text.write_text("The rain fell on the roofs and nobody came. " * 600)
    for words, documents, tokens in (("5", "4", "128"), ("context of 512", "5", "600")):
        ran = shoal(
            "kv", "calibrate", str(model), str(text), "--out", str(out), "--documents", documents, "--tokens", tokens
        )
        assert ran.code == 2
        assert words in ran.complaint
        assert not out.exists()
