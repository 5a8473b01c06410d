"""A model to be trained: found as one to be served is, loaded whole in float32, or made anew from its configuration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.node import model_source
from shoal.node.folder_manifest import weight_files
from shoal.node.manifest_builder import parse_config
from shoal.node.model_source import EMBEDDED, embedded_folder
from shoal.node.transformers_imports import causal_model_class
from shoal.swarm.errors import UsageError

from .data.text_encoder import TokenizerEncoder

SMALL_BYTES = 512 << 20  # of weights on disk
TEXTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True, eq=False)
class ModelFiles:
    """What is known without torch. texts: the small files of the model; folder: of the weights, or None"""

    name: str
    config: dict[str, Any]
    texts: dict[str, bytes]
    folder: Path | None

    @property
    def vocabulary(self) -> int:
        size = self.config.get("vocab_size")
        if not isinstance(size, int) or size < 1:
            raise UsageError(f"the config.json of {self.name} names no vocab_size")
        return size

    @property
    def context(self) -> int:
        return int(self.config.get("max_position_embeddings") or self.config.get("n_positions") or 1 << 30)

    @property
    def end(self) -> int | None:
        """The id that ends a text."""
        found = self.config.get("eos_token_id")
        if isinstance(found, list):
            found = found[0] if found else None
        return found if isinstance(found, int) else None


def find_model(name: str, initial: str, cache: Path) -> ModelFiles:
    """initial: `random` needs the configuration only. raises: UsageError, Unavailable (hub), OutOfMemory (disk)"""
    folder = embedded_folder() if name == EMBEDDED else Path(name).expanduser()
    if initial == "random" and (folder / "config.json").is_file():
        texts = {text: (folder / text).read_bytes() for text in TEXTS if (folder / text).is_file()}
        return ModelFiles(folder.resolve().name, parse_config(texts["config.json"], "config.json"), texts, None)
    model = model_source.resolve(name, cache)
    texts = {entry.name: model.text_file(entry.name) for entry in model.manifest.texts}
    config = parse_config(model.text_file("config.json"), "config.json")
    if initial == "random":
        return ModelFiles(model.manifest.name, config, texts, None)
    model.fetch()
    return ModelFiles(model.manifest.name, config, texts, model.folder)


def encoder_of(model: ModelFiles, tokenizer: str, base: Path) -> TokenizerEncoder:
    """The model's own tokenizer, or the one that the config names. raises: UsageError, for one of another model too"""
    if tokenizer:
        path = base / Path(tokenizer).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise UsageError(f"data.tokenizer: there is no tokenizer.json at {path}")
        content = path.read_bytes()
    elif "tokenizer.json" in model.texts:
        content = model.texts["tokenizer.json"]
    else:
        raise UsageError(f"{model.name} has no tokenizer.json; name one in data.tokenizer")
    return TokenizerEncoder.from_json(content, model.vocabulary, model.end, model.name)


def load_module(model: ModelFiles, seed: int) -> Any:  # noqa: ANN401  a transformers model, which has no types
    """In float32 on the CPU: small differences of large parameters are what peers exchange.

    raises: UsageError
    """
    import torch

    architecture = str((model.config.get("architectures") or [""])[0])
    model_class = causal_model_class(architecture, str(model.config.get("model_type", "")))
    config = model_class.config_class.from_dict(model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = model.folder is None or _weight_bytes(model.folder) <= SMALL_BYTES
        module = model_class(config).to(torch.float32) if small else None
    if model.folder is None or (module is not None and _filled(module, model.folder)):
        return module
    try:
        return model_class.from_pretrained(model.folder, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UsageError(f"{model.name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error


def _weight_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in weight_files(folder))


def _filled(module: Any, folder: Path) -> bool:  # noqa: ANN401
    """Whether the weights fit by their names; those of other layouts, transformers itself has to read.

    `from_pretrained` imports torch's compiler (4 s of processor time), which a small model can do without.
    """
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for name in weight_files(folder):
        state |= load_file(folder / name)
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    tied -= {name for name, _ in module.named_parameters()}
    known = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if any(known.get(name) != shape for name, shape in shapes.items()) or known.keys() - shapes.keys() - tied:
        return False
    module.load_state_dict(state, strict=False)
    return True
