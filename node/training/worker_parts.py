"""From a config to what a worker needs on this machine: the module, its optimiser, and what peers agree on."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import torch

from shoal.node.shard import choose_device
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.run_identity import usual_shards

from .config import TrainingConfig
from .limits_watch import refuse_memory
from .optimizers.inner import InnerOptimizer
from .parameter_layout import ParameterLayout
from .parameters import ModelParameters
from .strategies.outer_loop import LiveParameters
from .strategies.settings import StrategySettings
from .strategies.strategy import Strategy
from .worker import WorkerParts
from .worker_compiler import uncompiled
from .worker_data import TrainingData
from .worker_model import ModelFiles, load_module
from .worker_processes import processes
from .worker_progress import DataProgress
from .worker_steps import MICRO_TOKENS, InnerSteps

BASE_BYTES = 600 << 20  # of the process with its libraries
PARAMETER_BYTES = 44  # of one parameter: weight, gradient, inner and outer moments, outer copy, what encoding needs
Progress = Callable[[str, int, int], None]


class TrainedParameters(LiveParameters, Protocol):
    """`ModelParameters`, or `ShardedParameters` over several GPUs."""

    @property
    def layout(self) -> ParameterLayout: ...


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """memory_bytes: that training is expected to need"""

    config: TrainingConfig
    model: ModelFiles
    module: Any
    parameters: TrainedParameters
    steps: InnerSteps
    data: TrainingData
    model_hash: str
    memory_bytes: int

    @property
    def count(self) -> int:
        return self.parameters.layout.count


def prepare(
    config: TrainingConfig, model: ModelFiles, data: TrainingData, progress: Progress | None = None
) -> Prepared:
    """raises: UsageError, OutOfMemory"""
    if config.limits.threads:
        torch.set_num_threads(config.limits.threads)
    device = choose_device(config.batch.device)
    if progress is not None:
        progress(f"loading {model.name}", 0, 1)
    module = load_module(model, config.seed)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    needed = memory_needed(config, model, sum(p.numel() for p in module.parameters()), device.type)
    if device.type == "cpu":
        refuse_memory(config.limits, needed, f"training {model.name}")
    parameters = ModelParameters(module)
    model_hash = parameters.layout.model_hash(model.config, parameters.read())
    if processes() > 1:
        return _sharded(config, model, module, data, model_hash, needed, device)
    module.to(device)
    with uncompiled():
        optimizer = InnerOptimizer(config.inner, module.named_parameters())
    steps = InnerSteps(module, optimizer, config.batch, device)
    if progress is not None:
        progress(f"loading {model.name}", 1, 1)
    return Prepared(config, model, module, parameters, steps, data, model_hash, needed)


def _sharded(
    config: TrainingConfig,
    model: ModelFiles,
    module: Any,  # noqa: ANN401  a transformers model
    data: TrainingData,
    model_hash: str,
    needed: int,
    device: torch.device,
) -> Prepared:
    """Over the processes that torchrun has started; all of them come here. raises: UsageError"""
    from .worker_sharding import Ranks, ShardedParameters, ShardedSteps, shard

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    ranks = Ranks(device)
    module.to(device)
    shard(module, ranks)
    optimizer = InnerOptimizer(config.inner, module.named_parameters())
    steps = ShardedSteps(module, optimizer, config.batch, device, ranks)
    return Prepared(config, model, module, ShardedParameters(module, ranks), steps, data, model_hash, needed)


def memory_needed(config: TrainingConfig, model: ModelFiles, parameters: int, device: str) -> int:
    """A rough figure in bytes: parameters and their moments, and the activations of one forward pass.

    source of the activations' size: Korthikanti et al., Reducing Activation Recomputation, arXiv:2205.05198
    """
    length = config.data.sequence
    micro = config.batch.micro or max(1, min(config.batch.sequences, MICRO_TOKENS.get(device, 4096) // length))
    hidden = int(model.config.get("hidden_size") or model.config.get("n_embd") or 1)
    layers = int(model.config.get("num_hidden_layers") or model.config.get("n_layer") or 1)
    per_layer = 2 if config.batch.checkpointing else 40
    per_token = 4 * (hidden * layers * per_layer + 3 * model.vocabulary)
    return BASE_BYTES + PARAMETER_BYTES * parameters + micro * length * per_token


def settings_with(config: TrainingConfig, **changes: object) -> TrainingConfig:
    """A config with the strategy's `auto` settings resolved. raises: ValueError"""
    strategy = msgspec.structs.replace(config.strategy, **changes)
    strategy.check()
    return msgspec.structs.replace(config, strategy=strategy)


def run_spec(prepared: Prepared, config: TrainingConfig) -> RunSpec:
    """What all peers of the run must agree on. raises: ValueError for a model with too few layers for the fragments"""
    group, strategy = config.group, config.strategy
    fragments = prepared.parameters.layout.fragments(strategy.fragments)
    return RunSpec(
        name=config.name,
        model=prepared.model_hash,
        data=data_rules(prepared, config),
        strategy=strategy.canonical(),
        fragments=fragments,
        preset=strategy.preset,
        shards=group.shards or usual_shards(fragments, strategy.preset),
        quorum=group.quorum,
        grace_s=group.grace_s,
        deadline_s=group.deadline_s,
        reducer_decay=strategy.reducer_decay,
        robust=group.robust,
    )


def data_rules(prepared: Prepared, config: TrainingConfig) -> str:
    """Hex sha256 of all that decides what is learned from, in which order and how."""
    rules = {
        "order": prepared.data.order,
        "sequence": config.data.sequence,
        "isolate": config.data.isolate,
        "batch": config.batch.sequences,
        "inner": config.inner,
        "lag": lag_of(config.strategy),
    }
    return hashlib.sha256(msgspec.json.encode(rules, order="sorted")).hexdigest()


def lag_of(strategy: StrategySettings) -> int:
    return 1 if strategy.delay else 0


def parts_of(prepared: Prepared, config: TrainingConfig, spec: RunSpec, me: PeerId) -> WorkerParts:
    """raises: ValueError when the strategy does not fit the model"""
    layout = prepared.parameters.layout
    strategy = Strategy(config.strategy, spec, prepared.parameters.read(), layout.undecayed())
    progress = DataProgress(prepared.data.order, lag_of(config.strategy))
    return WorkerParts(config, me, prepared.data, prepared.steps, prepared.parameters, layout, strategy, progress)
