"""Only the tensors of a stage, in float32: read from a checkpoint, or drawn unit by unit from the run's seed.

A random model is drawn by unit, so that a stage is the same at all its replicas although nobody ever holds the whole.
It is therefore another one than `load_module` draws from the same seed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from shoal.node.model_skeleton import Skeleton, build_skeleton
from shoal.node.model_source import LocalModel
from shoal.node.weights import WeightReader, own_memory
from shoal.swarm.pipeline.stage_plan import StagePlan

from .stage_module import StageModule

Done = Callable[[int, int], None]  # units loaded, units in all


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the head has no matrix of its own; transformers takes the same default. config: of config.json"""
    from shoal.node.transformers_imports import causal_model_class

    kind = causal_model_class(str((config.get("architectures") or [""])[0]), str(config.get("model_type", "")))
    return bool(getattr(kind.config_class.from_dict(dict(config)), "tie_word_embeddings", False))


def load_stage(
    config: Mapping[str, Any],
    plan: StagePlan,
    stage: int,
    source: LocalModel | None,
    seed: int,
    done: Done = lambda _, __: None,
) -> StageModule:
    """source: None draws a random model. raises: UsageError, OutOfMemory, Unavailable (hub)"""
    skeleton = build_skeleton(config, torch.float32, None)
    units = [unit for span in plan.units(stage) for unit in range(span.start, span.stop)]
    reader = None
    if source is not None:
        for span in plan.units(stage):
            source.fetch(span)
        reader = WeightReader(skeleton, source.manifest, source.folder, torch.float32, torch.device("cpu"))
    for count, unit in enumerate(units, 1):
        modules = _modules(skeleton, unit)
        if reader is not None:
            reader.fill(unit, modules)
            for module in modules:
                own_memory(module)
        else:
            _draw(skeleton, unit, modules, seed)
        done(count, len(units))
    if plan.tied and {0, plan.layers + 1} <= set(units):
        skeleton.head.weight = skeleton.embed.weight
    return StageModule(skeleton, plan.units(stage))


def _modules(skeleton: Skeleton, unit: int) -> list[nn.Module]:
    if unit == 0:
        return [skeleton.embed]
    if unit == len(skeleton.layers) + 1:
        return [skeleton.norm, skeleton.head]
    return [skeleton.layers[unit - 1]]


def _draw(skeleton: Skeleton, unit: int, modules: list[nn.Module], seed: int) -> None:
    """As transformers initialises a new model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + unit)
        for module in modules:
            for child in module.modules():
                for name, parameter in list(child.named_parameters(recurse=False)):
                    if parameter.is_meta:
                        setattr(child, name, nn.Parameter(torch.zeros(parameter.shape, dtype=torch.float32)))
            for child in module.modules():
                skeleton.model._init_weights(child)  # noqa: SLF001  transformers has no public way for a part
