"""Loading a slice costs the memory of the slice, and a checkpoint that does not fit its config is refused by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from node.engine_chain import CPU, local_model
from node.tiny_models import make_model, save_model
from safetensors.torch import load_file, save_file

from shoal.node.shard import Shard, choose_device, choose_dtype
from shoal.swarm.errors import UsageError
from shoal.swarm.units import Span

MEASURE = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from shoal.node.model_source import resolve
from shoal.node.shard import Shard
from shoal.swarm.units import Span

def resident():
    for line in open("/proc/self/status"):
        if line.startswith(("RssAnon", "RssFile")):
            yield int(line.split()[1]) * 1024

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

Shard.load(resolve(sys.argv[2], Path(sys.argv[3])), Span(1, 2), "float32", torch.device("cpu"))  # first uses
model = resolve(sys.argv[1], Path(sys.argv[3]))
before = sum(resident())
shard = Shard.load(model, Span(*json.loads(sys.argv[4])), sys.argv[5], torch.device("cpu"))
print(json.dumps({"held": sum(resident()) - before, "peak": peak() - before}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen layers of 16.8 MB in float32, 270 MB in all."""
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    model = make_model("llama", num_hidden_layers=16, **wide)
    return save_model(model, tmp_path_factory.mktemp("large") / "large")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory from /proc")
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_an_eighth_of_a_model_takes_an_eighth_of_its_memory(large: Path, tmp_path: Path, dtype: str, size: int) -> None:
    small = save_model(make_model("llama"), tmp_path / "small")
    layer = (4 * 512 * 512 + 3 * 512 * 2048) * size
    arguments = [sys.executable, "-c", MEASURE, str(large), str(small), str(tmp_path / "cache"), "[5, 7]", dtype]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=240, check=True, env=environment)
    measured = json.loads(run.stdout.splitlines()[-1])
    assert 1.8 * layer < measured["held"] < 2.5 * layer + (12 << 20), measured
    assert measured["peak"] < 4 * layer + (4 * layer if size == 2 else 0) + (32 << 20), measured


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(make_model("llama"), tmp_path / "tiny")


def load_error(folder: Path, cache: Path, span: Span) -> str:
    with pytest.raises(UsageError) as caught:
        Shard.load(local_model(folder, cache), span, "float32", CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tensor_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert "mlp.up_proj.weight of unit 3" in load_error(folder, tmp_path / "cache", Span(2, 4))
    Shard.load(local_model(folder, tmp_path / "cache"), Span(0, 2), "float32", CPU)


def test_a_tensor_of_another_shape_than_the_config_says_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 100}
    (folder / "config.json").write_text(json.dumps(config))
    assert "do not fit its config.json" in load_error(folder, tmp_path / "cache", Span(1, 2))


def test_a_file_that_was_cut_after_it_was_hashed_is_named(folder: Path, tmp_path: Path) -> None:
    model = local_model(folder, tmp_path / "cache")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be read"):
        Shard.load(model, Span(0, 3), "float32", CPU)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"architectures": ["MambaForCausalLM"], "model_type": "mamba"},
            "does not use transformers' attention interface",
        ),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "is not a causal language model"),
        ({"architectures": ["os.system"], "model_type": "llama"}, "is not a causal language model"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "GPT2LMHeadModel cannot be split"),
        ({"architectures": ["MadeUpForCausalLM"], "model_type": "made_up", "auto_map": {}}, "never run"),
        ({"hidden_act": "no such thing"}, "transformers cannot build"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    folder: Path, tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    assert expected in load_error(folder, tmp_path / "cache", Span(0, 6))


def test_a_span_beyond_the_model_is_out_of_range(folder: Path, tmp_path: Path) -> None:
    assert "out of range" in load_error(folder, tmp_path / "cache", Span(3, 9))


def test_a_checkpoint_of_single_experts_is_read_by_transformers_rules(tmp_path: Path) -> None:
    folder = save_model(make_model("mixtral"), tmp_path / "mixtral")
    names = set(load_file(folder / "model.safetensors"))
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in names, "the layout of published checkpoints"
    Shard.load(local_model(folder, tmp_path / "cache"), Span(2, 4), "float32", CPU)


def test_the_dtype_is_the_checkpoints_on_cuda_and_float32_on_cpu(folder: Path, tmp_path: Path) -> None:
    make_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    manifest = local_model(tmp_path / "half", tmp_path / "cache").manifest
    assert manifest.dtype == "bfloat16"
    assert choose_dtype("auto", manifest, torch.device("cuda")) == "bfloat16"
    assert choose_dtype("auto", manifest, CPU) == "float32"
    assert choose_dtype("float16", manifest, CPU) == "float16"
    with pytest.raises(UsageError, match="unknown dtype"):
        choose_dtype("int3", manifest, CPU)


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(UsageError, match="no device 'abacus'"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            choose_device("cuda")
