"""Everything of a stage that has no network: its place in the model, its tensors, and at stage 0 the data."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from shoal.node import model_source
from shoal.node.manifest_builder import parse_config
from shoal.node.model_source import EMBEDDED, LocalModel, embedded_folder
from shoal.node.shard import choose_device
from shoal.node.training.config import ConfigFile, TrainingConfig
from shoal.node.training.data.assignment import DataOrder
from shoal.node.training.data.windows import Windows
from shoal.node.training.limits_watch import refuse_memory
from shoal.node.training.optimizers.inner import InnerOptimizer
from shoal.node.training.parameters import ModelParameters
from shoal.node.training.worker_compiler import uncompiled
from shoal.node.training.worker_data import TrainingData, open_data, share_of_round
from shoal.node.training.worker_model import TEXTS, ModelFiles
from shoal.node.training.worker_parts import Prepared, memory_needed
from shoal.swarm.errors import UsageError
from shoal.swarm.pipeline.stage_plan import StagePlan, even_plan, named_plan

from .settings import stage_run
from .stage_loading import is_tied, load_stage
from .stage_module import StageModule
from .stage_steps import StageSteps

Progress = Callable[[str, int, int], None]
NO_WINDOWS = 1 << 30  # of a stage that reads no data: so many peers may be on its roster


@dataclass(frozen=True, slots=True, eq=False)
class PreparedStage(Prepared):
    """config: with the name of the stage's own run; name: of the whole run; identity: of the whole model"""

    name: str
    plan: StagePlan
    stage: int
    identity: str


def prepared_stage(file: ConfigFile, stage: int, cache: Path, progress: Progress | None = None) -> PreparedStage:
    """raises: UsageError, OutOfMemory, Unavailable (hub)"""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a stage of a pipeline runs on one GPU; start without torchrun, or without [pipeline]")
    whole = file.config
    model, source = find_stage_model(whole, cache)
    plan = stage_plan(whole, model)
    device = choose_device(whole.batch.device)
    if whole.limits.threads:
        torch.set_num_threads(whole.limits.threads)
    config = msgspec.structs.replace(whole, name=stage_run(whole.name, stage))
    data = open_data(config, file.base, model, cache / "tokens", progress) if stage == 0 else no_data(config)

    def loading(done: int, total: int) -> None:
        if progress is not None:
            progress(f"loading {plan.describe(stage)} of {model.name}", done, total)

    module = load_stage(model.config, plan, stage, source, config.seed, loading)
    parameters = ModelParameters(module.model)
    needed = memory_needed(config, _part_of(model, plan, stage), parameters.layout.count, device.type)
    if device.type == "cpu":
        refuse_memory(config.limits, needed, f"training {plan.describe(stage)} of {model.name}")
    model_hash = parameters.layout.model_hash(model.config, parameters.read())
    module.model.to(device)
    steps = _steps(module, config, device)
    identity = source.model_id if source is not None else _drawn(model, config.seed)
    return PreparedStage(
        config, model, module.model, parameters, steps, data, model_hash, needed, whole.name, plan, stage, identity
    )


def find_stage_model(config: TrainingConfig, cache: Path) -> tuple[ModelFiles, LocalModel | None]:
    """As `worker_model.find_model`, but no weights are fetched yet. raises: UsageError, Unavailable (hub)"""
    folder = embedded_folder() if config.model == EMBEDDED else Path(config.model).expanduser()
    if config.initial == "random" and (folder / "config.json").is_file():
        texts = {text: (folder / text).read_bytes() for text in TEXTS if (folder / text).is_file()}
        name, source = folder.resolve().name, None
    else:
        found = model_source.resolve(config.model, cache)
        texts = {entry.name: found.text_file(entry.name) for entry in found.manifest.texts}
        texts["config.json"] = found.text_file("config.json")
        name, source = found.manifest.name, found if config.initial == "weights" else None
    parsed = parse_config(texts["config.json"], "config.json")
    if config.pipeline.untie and is_tied(parsed):
        parsed = {**parsed, "tie_word_embeddings": False}
        texts["config.json"] = msgspec.json.format(msgspec.json.encode(parsed), indent=2)
    return ModelFiles(name, parsed, texts, None), source


def stage_plan(config: TrainingConfig, model: ModelFiles) -> StagePlan:
    """raises: UsageError"""
    layers = int(model.config.get("num_hidden_layers") or model.config.get("n_layer") or 0)
    settings, tied = config.pipeline, is_tied(model.config)
    try:
        if settings.spans:
            return named_plan(layers, settings.spans, tied=tied)
        return even_plan(layers, settings.stages, tied=tied)
    except ValueError as error:
        raise UsageError(f"[pipeline] {error} ({model.name})") from error


def no_data(config: TrainingConfig) -> TrainingData:
    """Of a stage that gets activations."""
    length = config.data.sequence
    windows = Windows(np.zeros(length + 1, np.uint32), length, 0)
    return TrainingData(windows, DataOrder("", NO_WINDOWS, share_of_round(config), config.seed), None, "")


def micro_of(config: TrainingConfig) -> int:
    """Sequences of one microbatch: by default small enough that all stages have something to do."""
    sequences = config.batch.sequences
    return min(sequences, config.batch.micro or max(1, sequences // (2 * config.pipeline.stages)))


def _steps(module: StageModule, config: TrainingConfig, device: torch.device) -> StageSteps:
    with uncompiled():
        optimizer = InnerOptimizer(config.inner, module.model.named_parameters())
    settings = msgspec.structs.replace(config.batch, micro=micro_of(config))
    return StageSteps(module, optimizer, settings, device)


def _part_of(model: ModelFiles, plan: StagePlan, stage: int) -> ModelFiles:
    """For the estimate of memory: a model with this stage's layers."""
    config: dict[str, Any] = {**model.config, "num_hidden_layers": len(plan.spans[stage])}
    return replace(model, config=config)


def _drawn(model: ModelFiles, seed: int) -> str:
    described = msgspec.json.encode([model.config, seed], order="deterministic")
    return hashlib.sha256(described).hexdigest()
