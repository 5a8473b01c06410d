"""A run's data on this machine: tokens of the training and the held-out text, and the order in which they are used."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shoal.swarm.errors import UsageError

from .config import TrainingConfig
from .data.assignment import DataOrder
from .data.data_files import find_files, hashed
from .data.token_store import Progress, TextEncoder, open_store
from .data.windows import Windows
from .worker_model import ModelFiles, encoder_of


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """held_out: None without any; held_out_digest: of its tokens"""

    windows: Windows
    order: DataOrder
    held_out: Windows | None
    held_out_digest: str


def check_files(config: TrainingConfig, base: Path) -> None:
    """That all files are there, before anything that takes time. raises: UsageError"""
    find_files(config.data.files, base, "data.files")
    if config.data.held_out:
        find_files(config.data.held_out, base, "data.held_out")


def open_data(
    config: TrainingConfig, base: Path, model: ModelFiles, cache: Path, progress: Progress | None = None
) -> TrainingData:
    """raises: UsageError, OutOfMemory (disk full)"""
    settings = config.data
    if settings.sequence > model.context:
        raise UsageError(f"data.sequence is {settings.sequence}, but {model.name} has a context of {model.context}")
    encoder = encoder_of(model, settings.tokenizer, base)
    opened = _opener(config, base, encoder, cache, progress)
    windows, digest = opened(settings.files, "data.files")
    held_out, held_out_digest = opened(settings.held_out, "data.held_out") if settings.held_out else (None, "")
    order = DataOrder(digest, len(windows), share_of_round(config), config.seed)
    return TrainingData(windows, order, held_out, held_out_digest)


def _opener(
    config: TrainingConfig, base: Path, encoder: TextEncoder, cache: Path, progress: Progress | None
) -> Callable[[tuple[str, ...], str], tuple[Windows, str]]:
    settings = config.data

    def opened(names: tuple[str, ...], key: str) -> tuple[Windows, str]:
        files = hashed(find_files(names, base, key), cache)
        store = open_store(files, encoder, settings.field, cache, progress)
        return Windows(store.tokens, settings.sequence, encoder.end, settings.isolate), store.facts.digest

    return opened


def share_of_round(config: TrainingConfig) -> int:
    """Sequences that a peer trains on between two exchanges, at most."""
    return -(-config.strategy.interval // config.strategy.fragments) * config.batch.sequences
