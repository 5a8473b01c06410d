"""One inner step of a peer: forward and backward over a batch in parts, then the inner optimiser.

Shapes: B sequences of S tokens, V vocabulary; M sequences of one forward pass.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from shoal.swarm.errors import OutOfMemory, ShoalError

from .config import BatchSettings
from .data.windows import Batch
from .optimizers.inner import InnerOptimizer
from .worker_compiler import uncompiled

MICRO_TOKENS = {"cpu": 4096, "cuda": 32768}  # of one forward pass, when batch.micro is 0
MOST_BROKEN = 3  # steps in a row whose loss or gradient is not finite


class LossNotFinite(ShoalError):
    """The training has come apart here; the outer parameters are as they were."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """loss: nats a token, of the parameters before the step; tokens: learned from, 0 when the step was left out"""

    loss: float
    tokens: int


class InnerSteps:
    """micro: sequences of one forward pass, 0 for a guess; halved when the device has no room for so many"""

    def __init__(
        self,
        model: Any,  # noqa: ANN401  a transformers model
        optimizer: InnerOptimizer,
        settings: BatchSettings,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.micro = settings.micro
        self._bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
        self._broken = 0
        if settings.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def run(self, batch: Batch, step: int, *, moves: bool = True) -> StepResult:
        """step: inner steps before this one; moves: False leaves the gradient to be read instead of following it

        raises: LossNotFinite after several broken steps in a row; OutOfMemory
        """
        self.model.train()
        loss = self._accumulate(batch)
        norm = self.clipped()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._forget()
            self._broken += 1
            if self._broken >= MOST_BROKEN:
                rate = self.optimizer.settings.learning_rate
                raise LossNotFinite(
                    f"the loss is not a number any more (step {step + 1}, {self._broken} steps in a row); "
                    f"lower inner.learning_rate, which is {rate:g}, or look at the data"
                )
            return StepResult(loss, 0)
        self._broken = 0
        if moves:
            with uncompiled():
                self.optimizer.step(step)
            self._forget()
        return StepResult(loss, batch.tokens)

    def _forget(self) -> None:
        with uncompiled():
            self.optimizer.zero_grad()

    def clipped(self) -> float:
        """Clip the gradient. returns: its norm before"""
        return self.optimizer.clip()

    def use_less(self, limit: str) -> None:
        """Half as many sequences in one forward pass. raises: OutOfMemory when it is one already"""
        if self.micro == 1:
            raise OutOfMemory(
                f"training one sequence at a time needs more than {limit}; use a shorter data.sequence, "
                "a smaller model or batch.checkpointing = true"
            )
        self.micro = max(1, self.micro // 2)

    def _accumulate(self, batch: Batch) -> float:
        """Gradients of the whole batch, in parts that fit the memory. returns: the mean loss"""
        count, length = batch.inputs.shape
        micro = self.micro = self.micro or max(1, min(count, MICRO_TOKENS.get(self.device.type, 4096) // length))
        while True:
            try:
                self._forget()
                return sum(self._part(batch, start, min(start + micro, count)) for start in range(0, count, micro))
            except torch.OutOfMemoryError:
                self._forget()
                self.use_less("the memory of the device")
                micro = self.micro

    def _part(self, batch: Batch, start: int, stop: int) -> float:
        loss = self.loss(batch, start, stop) * ((stop - start) / len(batch.inputs))
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def close(self) -> None:
        """The training is over."""

    def loss(self, batch: Batch, start: int, stop: int) -> torch.Tensor:
        """Mean cross entropy of sequences [start, stop) of a batch, (M, S) ids through (M, S, V) logits."""
        inputs = torch.from_numpy(batch.inputs[start:stop]).to(self.device)
        targets = torch.from_numpy(batch.targets[start:stop]).to(self.device)
        places: dict[str, torch.Tensor] = {}
        if batch.positions is not None:  # from positions that begin again, the mask of each document follows
            places["position_ids"] = torch.from_numpy(batch.positions[start:stop]).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            logits = self.model(input_ids=inputs, use_cache=False, **places).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
