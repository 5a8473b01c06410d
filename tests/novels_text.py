"""The embedded model's own tokenizer behind a scripted token source, for tests of everything that speaks text."""

import json
from collections.abc import Sequence
from pathlib import Path

from shoal.swarm.manifest import TEXT_FILES, Manifest
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.text.scripted_source import Script, ScriptedModel, ScriptedSource
from shoal.swarm.text.tokenizer import TextModel

FOLDER = Path(__file__).parents[1] / "node" / "embedded" / "novels-6m"
STORY = "It was a dark and stormy night; the naïve café-keeper said “oh dear” 😀 and the rain fell. THE END of it."


def novels_files() -> dict[str, bytes]:
    return {name: (FOLDER / name).read_bytes() for name in TEXT_FILES if (FOLDER / name).exists()}


def novels_manifest(name: str = "novels-6m", max_context: int = 2048, vocabulary: int = 4096) -> Manifest:
    config = json.loads((FOLDER / "config.json").read_text())
    return Manifest(
        name=name,
        architecture=config["architectures"][0],
        model_type=config["model_type"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        vocabulary=vocabulary,
        max_context=max_context,
        dtype="bfloat16",
        tensors=(),
        weights=(),
        texts=(),
        eos_ids=(config["eos_token_id"],),
    )


def novels_model() -> TextModel:
    return TextModel.from_files(novels_files(), novels_manifest())


def tells(text: str = STORY, *then: BaseException) -> Script:
    """Says this text, then raises, then is silent."""
    ids = novels_model().encode(text)

    def script(_: TokenRequest) -> Sequence[int | BaseException]:
        return (*ids, *then)

    return script


def repeats(token: int = 40) -> Script:
    """Says one token for as long as it may."""
    return lambda request: [token] * request.max_new_tokens


def scripted_model(script: Script | None = None, missing: str = "", max_context: int = 2048) -> ScriptedModel:
    return ScriptedModel(novels_manifest(max_context=max_context), novels_files(), script or tells(), missing)


def scripted_novels(
    script: Script | None = None, missing: str = "", step_s: float = 0.0, max_context: int = 2048
) -> ScriptedSource:
    return ScriptedSource([scripted_model(script, missing, max_context)], step_s)
