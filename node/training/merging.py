"""Ways to make one tensor out of several models' versions of it. Sums are in float32, and rounded once at the end.

sources: Wortsman et al., Model soups, arXiv:2203.05482 (average); Ilharco et al., Editing Models with Task Arithmetic,
arXiv:2212.04089; Shoemake, Animating Rotation with Quaternion Curves, 1985 (SLERP)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from shoal.swarm.errors import UsageError

_PARALLEL = 0.9995  # cosine from which on the arc is as good as a line
_LARGEST_WEIGHT = 1e6
_CHUNK = 1 << 20  # values whose products are summed in float64 at a time


class Merge(Protocol):
    def check(self, models: int, *, base: bool) -> None:
        """raises: UsageError when this many models, with or without a base, cannot be merged so"""

    def __call__(self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor:
        """tensors: float32 of one shape, which may be overwritten. returns: float32"""


@dataclass(frozen=True, slots=True)
class Average:
    """sum(w_i * t_i) / sum(w_i). weights: one for each model, or none for equal ones"""

    weights: tuple[float, ...] = ()

    def check(self, models: int, *, base: bool) -> None:
        if base:
            raise UsageError("an average has no base; name the base among the models, or use task-arithmetic")
        if models < 2:
            raise UsageError("an average wants at least two models")
        _check_weights(self.weights, models)
        if self.weights and not sum(self.weights) > 0:
            raise UsageError("the weights of an average must sum to more than zero")

    def __call__(self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor:
        weights = self.weights or (1.0,) * len(tensors)
        total = sum(weights)
        merged = torch.zeros_like(tensors[0])
        for tensor, weight in zip(tensors, weights, strict=True):
            merged.add_(tensor, alpha=weight / total)
        return merged


@dataclass(frozen=True, slots=True)
class TaskArithmetic:
    """base + sum(w_i * (t_i - base)). weights: one for each model, or none for 1; negative ones make it forget"""

    weights: tuple[float, ...] = ()

    def check(self, models: int, *, base: bool) -> None:
        if not base:
            raise UsageError("task arithmetic wants --base, the model that the others were trained from")
        if models < 1:
            raise UsageError("task arithmetic wants at least one model beside the base")
        _check_weights(self.weights, models)

    def __call__(self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor:
        assert base is not None
        merged = base.clone()
        for tensor, weight in zip(tensors, self.weights or (1.0,) * len(tensors), strict=True):
            merged.add_(tensor.sub_(base), alpha=weight)
        return merged


@dataclass(frozen=True, slots=True)
class Slerp:
    """The point at share `at` of the arc between two tensors; at 0 it is the first, at 1 the second.

    sin((1 - at) * angle) / sin(angle) * a + sin(at * angle) / sin(angle) * b, with the angle between both.
    Tensors that are nearly parallel, or zero, are mixed along a line.
    """

    at: float = 0.5

    def check(self, models: int, *, base: bool) -> None:
        if models != 2 or base:
            raise UsageError("slerp wants exactly two models and no base")
        if not 0 <= self.at <= 1:
            raise UsageError(f"slerp goes from 0 to 1; {self.at} is outside")

    def __call__(self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor:
        first, second = tensors
        norms = math.sqrt(_dot(first, first)) * math.sqrt(_dot(second, second))
        cosine = _dot(first, second) / norms if norms > 0 else 1.0
        if abs(cosine) > _PARALLEL:
            left, right = 1 - self.at, self.at
        else:
            angle = math.acos(cosine)
            left = math.sin((1 - self.at) * angle) / math.sin(angle)
            right = math.sin(self.at * angle) / math.sin(angle)
        return first.mul_(left).add_(second, alpha=right)


def _dot(first: torch.Tensor, second: torch.Tensor) -> float:
    one, two = first.reshape(-1), second.reshape(-1)
    starts = range(0, one.numel(), _CHUNK)
    return sum(float(torch.dot(one[at : at + _CHUNK].double(), two[at : at + _CHUNK].double())) for at in starts)


def _check_weights(weights: Sequence[float], models: int) -> None:
    if weights and len(weights) != models:
        raise UsageError(f"{len(weights)} weights for {models} models")
    if not all(abs(weight) <= _LARGEST_WEIGHT for weight in weights):
        raise UsageError(f"weights are numbers up to {_LARGEST_WEIGHT:.0f}")
