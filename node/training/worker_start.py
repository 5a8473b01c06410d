"""Everything of a run that has no network: found, checked, tokenised and loaded, in the order of what it costs.

Takes seconds (torch, the model, at first the tokens), so it runs on a thread beside the start of the network. What is
wrong with the config's files is told before torch is imported.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .config import ConfigFile
from .worker_data import open_data
from .worker_model import find_model

if TYPE_CHECKING:
    from .worker_parts import Prepared

Progress = Callable[[str, int, int], None]


def prepared(file: ConfigFile, cache: Path, progress: Progress | None = None) -> "Prepared":
    """raises: UsageError, OutOfMemory, Unavailable (hub)"""
    config = file.config
    if config.pipeline.cut:
        from .pipeline.stage_start import prepared_stage

        assert config.pipeline.stage != "auto"
        return prepared_stage(file, config.pipeline.stage, cache, progress)
    model = find_model(config.model, config.initial, cache)
    data = open_data(config, file.base, model, cache / "tokens", progress)
    from .worker_parts import prepare  # brings torch

    return prepare(config, model, data, progress)
