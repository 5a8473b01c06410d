"""The held-out loss and its gradient at parameters of one's choice: what the value of updates is measured with."""

from collections.abc import Sequence

import torch

from shoal.compression.update_codec import Values

from .data.windows import Windows
from .evaluation import outer_in_place
from .parameters import ModelParameters
from .worker_steps import InnerSteps


def held_out_gradient(
    steps: InnerSteps, parameters: ModelParameters, held_out: Windows, at: Values, windows: Sequence[int]
) -> Values:
    """(N,) gradient of the mean loss over these windows, not clipped; the peer's own parameters stay as they were."""
    steps.model.eval()
    with outer_in_place(parameters, at):
        steps.optimizer.zero_grad()
        for index in windows:
            loss = steps.loss(held_out.batch([index]), 0, 1) / len(windows)
            loss.backward()  # type: ignore[no-untyped-call]
        gradient = parameters.gradients()
        steps.optimizer.zero_grad()
    return gradient


@torch.no_grad()
def held_out_loss(
    steps: InnerSteps, parameters: ModelParameters, held_out: Windows, at: Values, windows: Sequence[int]
) -> float:
    """Nats a token, the mean over these windows."""
    steps.model.eval()
    with outer_in_place(parameters, at):
        return sum(float(steps.loss(held_out.batch([index]), 0, 1)) for index in windows) / len(windows)
