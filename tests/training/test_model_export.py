"""A trained model as a folder: the same logits in transformers and in a shard; nothing is written when it is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from node.tiny_models import make_model
from training.full_disk import files_up_to
from transformers import AutoModelForCausalLM

from shoal.node.attention_plan import Piece
from shoal.node.model_source import embedded_folder, from_folder
from shoal.node.shard import Shard
from shoal.node.training.model_export import converted, export_model
from shoal.node.training.parameters import ModelParameters
from shoal.node.transformers_imports import Untyped
from shoal.swarm.errors import OutOfMemory, UsageError
from shoal.swarm.manifest import KV_PROFILE
from shoal.swarm.units import whole

IDS = [5, 17, 99, 3, 42, 7]
Values = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]


def trained(name: str = "llama-tied", **changes: object) -> tuple[Untyped, Values, dict[str, bytes]]:
    """A model, its parameters as a trainer holds them, and its small files."""
    model = make_model(name, 3, hidden_size=32, intermediate_size=48, num_hidden_layers=2, **changes)
    model.config.architectures = [type(model).__name__]
    held = ModelParameters(model)
    tensors = held.layout.tensors(held.read())
    return model, tensors, {"config.json": model.config.to_json_string(use_diff=False).encode()}


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gemma3", "gpt-neox", "qwen3"])
def test_an_exported_model_is_the_same_in_transformers_and_in_a_shard(tmp_path: Path, name: str) -> None:
    model, parameters, texts = trained(name)
    export_model(parameters, texts, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    local = from_folder(tmp_path / "out", tmp_path / "cache", "exported")
    shard = Shard.load(local, whole(2), "float32", torch.device("cpu"))
    cache = shard.new_cache(64)
    plan = shard.plan(cache, (Piece(cache.reserve(len(IDS)), 0, len(IDS)),))
    served = shard.run(whole(2), torch.tensor(IDS), plan, range(len(IDS)))
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        wanted = model(torch.tensor([IDS])).logits[0]
        found = loaded(torch.tensor([IDS])).logits[0]
    assert torch.equal(found, wanted)
    assert (served - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_smaller_dtype_is_that_of_the_folder(tmp_path: Path, dtype: str) -> None:
    _, parameters, texts = trained()
    export_model(parameters, texts, tmp_path / "out", dtype)
    assert from_folder(tmp_path / "out", tmp_path, "x").manifest.dtype == dtype
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert str(loaded.dtype) == f"torch.{dtype}"
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = torch.from_numpy(parameters[name].copy()).to(getattr(torch, dtype))
    assert torch.equal(dict(loaded.named_parameters())[name].data, wanted)


def test_values_are_rounded_as_torch_rounds_them() -> None:
    draw = np.random.default_rng(1)
    values = np.concatenate([draw.normal(size=5000), draw.normal(size=500) * 1e-39, [0.0, -0.0, 3e38, 1.00390625]])
    source = values.astype(np.float32)
    found = torch.frombuffer(bytearray(converted(source, "bfloat16")), dtype=torch.bfloat16)
    assert torch.equal(found, torch.from_numpy(source).bfloat16())


def test_a_large_model_is_written_in_several_files(tmp_path: Path) -> None:
    model, parameters, texts = trained("llama")
    export_model(parameters, texts, tmp_path / "out", max_file_bytes=40_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name
    assert from_folder(tmp_path / "out", tmp_path, "x").manifest.layers == 2


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    _, parameters, texts = trained()
    content = (embedded_folder() / "tokenizer.json").read_bytes()
    export_model(parameters, {**texts, "tokenizer.json": content}, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == content


def test_a_profile_of_the_caches_of_other_weights_stays_behind(tmp_path: Path) -> None:
    _, parameters, texts = trained()
    export_model(parameters, {**texts, KV_PROFILE: b"calibrated before training"}, tmp_path / "out")
    assert not (tmp_path / "out" / KV_PROFILE).exists()


def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    _, parameters, texts = trained()
    name = "model.norm.weight"
    lacking = {key: value for key, value in parameters.items() if key != name}
    with pytest.raises(UsageError, match=r"lacks model\.norm\.weight"):
        export_model(lacking, texts, tmp_path / "out")
    with pytest.raises(UsageError, match=r"model\.norm\.weight is 5 in the checkpoint and 32 in config\.json"):
        export_model({**parameters, name: np.zeros(5, np.float32)}, texts, tmp_path / "out")
    with pytest.raises(UsageError, match="holds extra, which the model"):
        export_model({**parameters, "extra": np.zeros(5, np.float32)}, texts, tmp_path / "out")
    with pytest.raises(UsageError, match="without a config"):
        export_model(parameters, {}, tmp_path / "out")
    with pytest.raises(UsageError, match="unknown dtype 'int3'"):
        export_model(parameters, texts, tmp_path / "out", "int3")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "dtype", "line"), [(np.nan, "float32", "not all finite"), (1e6, "float16", "too large")]
)
def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path: Path, value: float, dtype: str, line: str) -> None:
    _, parameters, texts = trained()
    parameters["model.norm.weight"] = np.full(32, value, np.float32)
    with pytest.raises(UsageError, match=line):
        export_model(parameters, texts, tmp_path / "out", dtype)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_of_a_model(tmp_path: Path) -> None:
    _, parameters, texts = trained()
    with files_up_to(10_000), pytest.raises(OutOfMemory, match="cannot write"):
        export_model(parameters, texts, tmp_path / "out")
    assert not list(tmp_path.iterdir())
