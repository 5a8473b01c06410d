"""Models from folders and from the package: identity, one-line errors, hashing once, and nothing but what is needed."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kv_samples import profile
from node.tiny_models import make_model, save_model

from shoal.compression.kv_profile import parse_profile
from shoal.node.model_source import EMBEDDED, embedded_folder, resolve
from shoal.node.model_units import files_of, tensors_of, tensors_of_units, unit_bytes
from shoal.swarm.errors import UsageError
from shoal.swarm.manifest import KV_PROFILE, decode, encode
from shoal.swarm.units import Span


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(make_model("llama"), tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def error_of(model: str, cache: Path) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(model, cache)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_embedded_model_needs_no_network(tmp_path: Path) -> None:
    model = resolve(EMBEDDED, tmp_path)
    manifest = model.manifest
    assert (manifest.name, manifest.layers, manifest.hidden, manifest.vocabulary) == ("novels-6m", 8, 256, 4096)
    assert (manifest.max_context, manifest.dtype, manifest.eos_ids) == (2048, "bfloat16", (0,))
    assert {entry.name for entry in manifest.texts} >= {"config.json", "tokenizer.json"}
    assert json.loads(model.text_file("config.json"))["model_type"] == "llama"
    model.fetch()


def test_the_id_depends_on_the_content_and_not_on_the_place(folder: Path, original: Path, tmp_path: Path) -> None:
    renamed = Path(shutil.copytree(original, tmp_path / "another name"))
    here, there = resolve(str(folder), tmp_path / "c1"), resolve(str(renamed), tmp_path / "c2")
    assert here.model_id == there.model_id
    assert (here.manifest.name, there.manifest.name) == ("tiny", "another name")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert resolve(str(folder), tmp_path / "c1").model_id != here.model_id


def test_a_profile_of_its_caches_is_part_of_a_model_under_its_own_address(folder: Path, tmp_path: Path) -> None:
    bare = resolve(str(folder), tmp_path / "cache")
    made = profile()
    (folder / KV_PROFILE).write_bytes(made.packed)
    model = resolve(str(folder), tmp_path / "cache")
    assert {entry.name: entry.sha256 for entry in model.manifest.texts}[KV_PROFILE] == made.digest.hex()
    assert parse_profile(model.text_file(KV_PROFILE)).packed == made.packed
    assert model.model_id != bare.model_id


def test_a_manifest_survives_its_encoding(folder: Path, tmp_path: Path) -> None:
    manifest = resolve(str(folder), tmp_path / "cache").manifest
    assert decode(encode(manifest)) == manifest
    assert len(manifest.chunks["model.safetensors"]) == 1


def test_a_folder_is_hashed_once_until_a_file_changes(folder: Path, tmp_path: Path) -> None:
    hashed: list[str] = []
    for change in (None, None, folder / "config.json"):
        if change is not None:
            change.write_text(change.read_text() + "\n")
        resolve(str(folder), tmp_path / "cache", progress=lambda what, _done, _total: hashed.append(what))
    assert hashed == ["hashing model.safetensors"] * 2


def test_a_damaged_record_of_a_manifest_is_made_again(folder: Path, tmp_path: Path) -> None:
    expected = resolve(str(folder), tmp_path / "cache").model_id
    (record,) = (tmp_path / "cache" / "manifests").iterdir()
    for content in (b"", b"nonsense", record.read_bytes()[:-5]):
        record.write_bytes(content)
        assert resolve(str(folder), tmp_path / "cache").model_id == expected


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    assert "no folder ./nowhere" in error_of("./nowhere", tmp_path)
    assert "no folder a/b/c" in error_of("a/b/c", tmp_path)
    assert "is a file" in error_of(__file__, tmp_path)
    assert "empty" in error_of("", tmp_path)
    assert "no folder ~nobody-of-this-name/x" in error_of("~nobody-of-this-name/x", tmp_path)
    assert "no folder xxx" in error_of("x" * 300, tmp_path)


def test_a_folder_without_config_is_no_model(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in error_of(str(folder), tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"architectures": ["LlamaForCausalLM"]}'])
def test_a_config_that_describes_nothing_is_refused(folder: Path, tmp_path: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in error_of(str(folder), tmp_path)


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights" in error_of(str(folder), tmp_path)


def test_a_folder_without_weights_says_so(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no .safetensors weights" in error_of(str(folder), tmp_path)


def header_of(data: bytes) -> tuple[int, dict[str, object]]:
    (length,) = struct.unpack("<Q", data[:8])
    return length, json.loads(data[8 : 8 + length])


def with_header(data: bytes, change: Callable[[dict[str, dict[str, object]]], None]) -> bytes:
    length, header = header_of(data)
    change(header)  # type: ignore[arg-type]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def overlap(header: dict[str, dict[str, object]]) -> None:
    header["model.norm.weight"]["data_offsets"] = [0, 256]


def unknown_dtype(header: dict[str, dict[str, object]]) -> None:
    header["model.norm.weight"]["dtype"] = "F1"


def wrong_shape(header: dict[str, dict[str, object]]) -> None:
    header["model.norm.weight"]["shape"] = [63]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "seven bytes": lambda data: data[:7],
    "header cut": lambda data: data[:100],
    "tensors cut": lambda data: data[:-100],
    "too long": lambda data: data + b"\0",
    "huge header": lambda data: b"\xff" * 8 + data[8:],
    "no JSON": lambda data: data[:8] + b"?" * 50 + data[58:],
    "overlap": lambda data: with_header(data, overlap),
    "unknown dtype": lambda data: with_header(data, unknown_dtype),
    "wrong shape": lambda data: with_header(data, wrong_shape),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_weight_file_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    message = error_of(str(folder), tmp_path)
    assert "model.safetensors" in message
    assert "corrupt" in message or "truncated" in message


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-00001-of-00002.safetensors" in error_of(str(folder), tmp_path)


def test_quantised_checkpoints_are_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "quantised" in error_of(str(folder), tmp_path)


def test_units_hold_all_tensors_and_a_tied_head_holds_the_embedding_too(folder: Path, tmp_path: Path) -> None:
    manifest = resolve(str(folder), tmp_path).manifest
    units = tensors_of_units(manifest)
    assert len(units) == 6
    assert sorted(entry.name for unit in units for entry in unit) == [entry.name for entry in manifest.tensors]
    assert [entry.name for entry in units[0]] == ["model.embed_tokens.weight"]
    tied = resolve(str(save_model(make_model("llama-tied"), tmp_path / "tied")), tmp_path).manifest
    assert {entry.name for entry in tensors_of_units(tied)[-1]} == {"model.embed_tokens.weight", "model.norm.weight"}
    assert unit_bytes(manifest, "bfloat16") == [size // 2 for size in unit_bytes(manifest, "float32")]


def test_a_span_needs_only_the_files_that_hold_it(tmp_path: Path) -> None:
    model = make_model("llama", num_hidden_layers=6)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="150KB")
    manifest = resolve(str(tmp_path / "sharded"), tmp_path / "cache").manifest
    assert len(manifest.weights) > 3
    span = Span(2, 4)
    files = files_of(manifest, span)
    assert 0 < len(files) < len(manifest.weights)
    assert {entry.file for entry in tensors_of(manifest, span)} == set(files)


def test_a_sentencepiece_or_vocabulary_tokenizer_is_converted_once(tmp_path: Path) -> None:
    folder = save_model(make_model("qwen2"), tmp_path / "old")
    vocabulary = {chr(code): number for number, code in enumerate(range(33, 127))} | {"ab": 94}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    model = resolve(str(folder), tmp_path / "cache")
    assert "tokenizer.json" in {entry.name for entry in model.manifest.texts}
    assert json.loads(model.text_file("tokenizer.json"))["model"]["vocab"]["ab"] == 94
    assert not (folder / "tokenizer.json").exists()
    assert resolve(str(folder), tmp_path / "cache").model_id == model.model_id


def test_finding_a_model_imports_no_tensor_library(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom shoal.node.model_source import resolve\n"
        f"resolve('novels-6m', Path({str(tmp_path)!r}))\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=os.environ)


def test_the_embedded_folder_is_package_data() -> None:
    assert (embedded_folder() / "model.safetensors").is_file()
