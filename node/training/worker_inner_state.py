"""The inner optimiser's state as plain arrays and numbers, for a checkpoint; no pickle."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .checkpoints.snapshot import Value
from .optimizers.inner import InnerOptimizer
from .worker_compiler import uncompiled
from .worker_processes import processes


def inner_state(optimizer: InnerOptimizer) -> dict[str, Value]:
    """`OPTIMISER.PARAMETER.NAME`: what torch keeps of each parameter; nothing when it is sharded over several GPUs."""
    if processes() > 1:
        return {}
    found: dict[str, Value] = {}
    with uncompiled():
        states = optimizer.state_dict()
    for number, state in enumerate(states):
        for index, moments in state["state"].items():
            for name, value in moments.items():
                key = f"{number}.{index}.{name}"
                found[key] = value.detach().cpu().numpy().copy() if isinstance(value, torch.Tensor) else value
    return found


def restore_inner(optimizer: InnerOptimizer, state: Mapping[str, Value]) -> None:
    """raises: ValueError for the state of another optimiser or model; nothing has changed then"""
    with uncompiled():
        restored = optimizer.state_dict()
    shapes = [[tuple(p.shape) for group in o.param_groups for p in group["params"]] for o in optimizer.optimizers]
    moments: list[dict[int, dict[str, Any]]] = [{} for _ in restored]
    for key, value in state.items():
        try:
            number, index, name = key.split(".", 2)
            which, parameter = int(number), int(index)
            shape = shapes[which][parameter]
        except (ValueError, IndexError) as error:
            raise ValueError(f"{key} is not of this inner optimiser") from error
        if isinstance(value, np.ndarray) and value.ndim and value.shape != shape:
            raise ValueError(f"{key} is of another model")
        array = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        moments[which].setdefault(parameter, {})[name] = array
    for each, state_of in zip(restored, moments, strict=True):
        each["state"] = state_of
    with uncompiled():
        optimizer.load_state_dict(restored)
