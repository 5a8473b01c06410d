"""Held-out perplexity: how well the outer parameters, alike at all peers, predict text that nobody trains on."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from shoal.compression.update_codec import Values

from .data.windows import Windows
from .strategies.outer_loop import LiveParameters
from .worker_steps import InnerSteps


@dataclass(frozen=True, slots=True)
class HeldOut:
    """loss: nats a token; sequences: of the held-out text, from its beginning"""

    loss: float
    sequences: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


@contextmanager
def outer_in_place(parameters: LiveParameters, outer: Values) -> Iterator[None]:
    """The outer parameters in the model for a while, then the peer's own again."""
    own = parameters.read()
    differs = not np.array_equal(own, outer)
    if differs:
        parameters.write(0, outer)
    try:
        yield
    finally:
        if differs:
            parameters.write(0, own)


def gradient_over(steps: InnerSteps, parameters: LiveParameters, text: Windows, windows: Sequence[int]) -> Values:
    """(N,) of the mean loss over some windows, at the parameters that are in the model."""
    steps.model.eval()
    steps.model.zero_grad(set_to_none=True)
    for index in windows:
        (steps.loss(text.batch([index]), 0, 1) / len(windows)).backward()  # type: ignore[no-untyped-call]
    found = parameters.gradients()
    steps.model.zero_grad(set_to_none=True)
    return found


@torch.no_grad()
def evaluate(steps: InnerSteps, held_out: Windows, sequences: int) -> HeldOut:
    """The mean loss over the first windows of the held-out text, in the precision of the training."""
    count = min(sequences, len(held_out))
    steps.model.eval()
    total = 0.0
    for index in range(count):
        total += float(steps.loss(held_out.batch([index]), 0, 1))
    return HeldOut(total / count, count)
