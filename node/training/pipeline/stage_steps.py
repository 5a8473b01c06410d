"""What a stage computes: forward without keeping anything, forward again with its backward, and the inner step.

Shapes: B sequences of S tokens, D hidden.
"""

import math
from collections.abc import Callable, Coroutine
from typing import Any

import anyio.from_thread
import torch

from shoal.node.training.config import BatchSettings
from shoal.node.training.data.windows import Batch
from shoal.node.training.optimizers.inner import InnerOptimizer
from shoal.node.training.worker_compiler import uncompiled
from shoal.node.training.worker_steps import InnerSteps, StepResult
from shoal.swarm.errors import LocalFault
from shoal.swarm.pipeline.work_links import NotFinite

from .stage_module import StageModule

Measure = Callable[[Batch], Coroutine[Any, Any, float]]


class StageSteps(InnerSteps):
    """Called on the stage's own thread. batch: sequences of an inner step of one driver; the sum counts in its parts"""

    def __init__(
        self, stage: StageModule, optimizer: InnerOptimizer, settings: BatchSettings, device: torch.device
    ) -> None:
        super().__init__(stage.model, optimizer, settings, device)
        self.stage = stage
        self.measured: Measure | None = None  # a batch's loss through all stages
        self._batch = settings.sequences

    def loss(self, batch: Batch, start: int, stop: int) -> torch.Tensor:
        """As of the whole model, for an evaluation; on a thread beside the event loop. raises: LocalFault"""
        if self.measured is None:
            raise LocalFault("only a replica of stage 0 can measure a loss")
        part = Batch(
            batch.inputs[start:stop],
            batch.targets[start:stop],
            None if batch.positions is None else batch.positions[start:stop],
        )
        return torch.tensor(anyio.from_thread.run(self.measured, part))

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None, seed: int, *, learns: bool) -> torch.Tensor:
        """returns: (B, S, D), no gradient. raises: NotFinite"""
        with torch.no_grad():
            return _finite(self._layers(x, positions, seed, learns=learns))

    def backward(
        self, x: torch.Tensor, positions: torch.Tensor | None, seed: int, gradient: torch.Tensor, *, adds: bool
    ) -> torch.Tensor | None:
        """The same forward pass again, and back. returns: the gradient of x, None for ids. raises: NotFinite"""
        x = x.requires_grad_(x.is_floating_point())
        out = self._layers(x, positions, seed, learns=True)
        return self._back(out, gradient, x, adds=adds)

    def loss_of(
        self,
        x: torch.Tensor,
        targets: torch.Tensor,
        positions: torch.Tensor | None,
        seed: int,
        *,
        learns: bool,
        adds: bool,
    ) -> tuple[float, torch.Tensor | None]:
        """From what comes in to the loss, through layers that are held here. raises: NotFinite"""
        learning = torch.enable_grad() if learns else torch.no_grad()
        with learning:
            x = x.requires_grad_(learns and x.is_floating_point())
            return self._end(self._layers(x, positions, seed, learns=learns), x, targets, learns=learns, adds=adds)

    def head_of(
        self, x: torch.Tensor, targets: torch.Tensor, *, learns: bool, adds: bool
    ) -> tuple[float, torch.Tensor | None]:
        """The same through norm and head alone: x has come back from the last stage. raises: NotFinite"""
        learning = torch.enable_grad() if learns else torch.no_grad()
        with learning:
            x = x.requires_grad_(learns)
            return self._end(x, x, targets, learns=learns, adds=adds)

    def mean(self, sequences: int) -> float:
        """The sum of the step's parts becomes the mean over its sequences. returns: the square of its norm"""
        scale = self._batch / sequences
        square = 0.0
        for parameter in self.optimizer.parameters:
            if parameter.grad is not None:
                if scale != 1.0:
                    parameter.grad.mul_(scale)
                square += float(torch.linalg.vector_norm(parameter.grad, dtype=torch.float64)) ** 2
        return square

    def discard(self) -> None:
        self._forget()

    def move(self, norm: float, step: int, *, moves: bool) -> None:
        """Follow the gradient, clipped by its norm over all stages. moves: False leaves it to be read"""
        limit = self.optimizer.settings.clip
        if limit and (factor := limit / (norm + 1e-6)) < 1.0:
            for parameter in self.optimizer.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        if moves:
            with uncompiled():
                self.optimizer.step(step)
            self._forget()

    def settled(self, norm: float, loss: float, step: int, tokens: int, *, moves: bool) -> StepResult:
        """The end of a step at any stage; one whose numbers are not finite is left out by all of them."""
        if not (math.isfinite(norm) and math.isfinite(loss)) or not tokens:
            self._forget()
            return StepResult(loss, 0)
        self.move(norm, step, moves=moves)
        return StepResult(loss, tokens)

    def _layers(self, x: torch.Tensor, positions: torch.Tensor | None, seed: int, *, learns: bool) -> torch.Tensor:
        """seed: of dropout, so that the second forward pass is the first one again"""
        self.model.train(learns)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                return self.stage.layers(x, positions)

    def _end(
        self, hidden: torch.Tensor, x: torch.Tensor, targets: torch.Tensor, *, learns: bool, adds: bool
    ) -> tuple[float, torch.Tensor | None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            loss = self.stage.loss(hidden, targets)
        mean = float(loss.detach())
        if not math.isfinite(mean):
            raise NotFinite("the loss is not a number any more")
        if not learns:
            return mean, None
        part = loss * (len(targets) / self._batch)
        return mean, self._back(part, None, x, adds=adds)

    def _back(
        self, out: torch.Tensor, gradient: torch.Tensor | None, x: torch.Tensor, *, adds: bool
    ) -> torch.Tensor | None:
        given: Any = None if gradient is None else gradient.to(out.dtype)
        if adds:
            torch.autograd.backward(out, given)
            found = x.grad
        else:
            found = torch.autograd.grad(out, x, given)[0] if x.requires_grad else None
        return None if found is None else _finite(found)


def _finite(x: torch.Tensor) -> torch.Tensor:
    """raises: NotFinite"""
    if not bool(torch.isfinite(x).all()):
        raise NotFinite("activations or gradients are not finite any more")
    return x
