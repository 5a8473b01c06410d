"""`shoal up` with models that are not what they should be: one line, the right exit code, nothing lost."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from node.cli.shoal_process import HERE, assert_free, begun, ended, run, spawn
from node.hub_server import running_hub
from node.tiny_models import make_model, save_model
from safetensors.torch import load_file, save_file

from shoal.node.model_source import embedded_folder

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(make_model("llama"), tmp_path_factory.mktemp("sound") / "tiny")


@pytest.fixture
def model(sound: Path, folder: Path) -> Path:
    return Path(shutil.copytree(sound, folder / "tiny"))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def overwrite_header(file: Path) -> None:
    file.write_bytes(bytes(200) + file.read_bytes()[200:])


def overwrite_numbers(file: Path) -> None:
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"].view(torch.int32)[5] = -1  # a NaN
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, f"{WEIGHTS} is truncated or corrupt: "),
        (overwrite_header, f"{WEIGHTS} is not a safetensors file or is corrupt"),
        (overwrite_numbers, "embed+0:4+head of tiny gives NaN or infinity in float32: its weights are corrupt"),
    ],
    ids=["truncated", "header", "numbers"],
)
def test_a_damaged_weight_file_ends_the_start_and_nothing_else(
    folder: Path, model: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(model / WEIGHTS)
    before = (model / WEIGHTS).read_bytes()
    ran = run("up", str(model), "--json", "--home", str(folder / "home"), *HERE)
    assert ran.code == 2
    assert words in ran.complaint
    error = ran.events[-1]
    assert (error["event"], error["type"], error["exit_code"]) == ("error", "UsageError", 2)
    assert "ready" not in {event["event"] for event in ran.events}
    assert_free(folder / "home")
    assert (model / WEIGHTS).read_bytes() == before


def test_a_hub_without_the_model_or_with_other_bytes_is_told_so(folder: Path, sound: Path) -> None:
    home = folder / "home"
    with running_hub({"novels/tiny": sound}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")}
        unknown = ended(spawn(["up", "novels/nothing", "--home", str(home), *HERE], **environment))
        hub.lies = True
        damaged = ended(spawn(["up", "novels/tiny", "--home", str(home), *HERE], **environment))
    assert unknown.code == 2
    assert "there is no model novels/nothing" in unknown.complaint
    assert damaged.code == 2
    assert f"{WEIGHTS} of novels/tiny did not arrive as the hub describes it" in damaged.complaint
    assert not [*home.rglob("*.safetensors"), *home.rglob("*.part")]
    assert_free(home)


def test_a_wrong_tokenizer_is_named_when_a_text_is_asked_for(folder: Path, model: Path) -> None:
    """The node serves token ids all the same: that needs no tokenizer."""
    shutil.copy(embedded_folder() / "tokenizer.json", model)
    home = ["--home", str(folder / "home")]
    process = begun(folder / "home", "ready", [str(model)])
    try:
        ran = run("generate", "hello", *home)
        as_json = run("generate", "hello", "--json", *home)
    finally:
        process.send_signal(signal.SIGINT)
    assert ended(process).code == 130
    assert ran.code == 2
    assert ran.out == ""
    assert ran.complaint == "not the tokenizer of tiny: it has 4096 tokens, the model 211"
    assert [json.loads(line)["exit_code"] for line in as_json.out.splitlines()] == [2]
