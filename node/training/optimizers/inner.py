"""The optimiser of a peer's own inner steps: AdamW, Muon for the matrices inside layers, or plain SGD."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .inner_settings import InnerSettings


class InnerOptimizer:
    """One `step` after each backward pass; the learning rate follows the schedule by the step's number.

    Muon takes the matrices of numbered layers, with updates as large as AdamW's so that one learning rate suits both;
    embeddings, the head and vectors stay with AdamW.
    source: Jordan et al., Muon; Liu et al., Muon is Scalable for LLM Training, arXiv:2502.16982
    """

    def __init__(self, settings: InnerSettings, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        settings.check()
        self.settings = settings
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        muon = [p for name, p in named if settings.kind == "muon" and p.ndim == 2 and in_numbered_layer(name)]
        taken = {id(p) for p in muon}
        rest = [p for p in self.parameters if id(p) not in taken]
        self.optimizers: list[torch.optim.Optimizer] = []
        if muon:
            self.optimizers.append(
                torch.optim.Muon(
                    muon,
                    lr=settings.learning_rate,
                    weight_decay=settings.weight_decay,
                    momentum=settings.momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if rest and settings.kind == "sgd":
            self.optimizers.append(torch.optim.SGD(rest, lr=settings.learning_rate))
        elif rest:
            groups = [
                {"params": [p for p in rest if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            ]
            self.optimizers.append(
                torch.optim.AdamW(
                    [group for group in groups if group["params"]],
                    lr=settings.learning_rate,
                    betas=(settings.beta1, settings.beta2),
                    eps=settings.epsilon,
                )
            )

    def clip(self) -> float:
        """Clips the gradients if the settings say so. returns: their norm before; not finite for a broken batch"""
        limit = self.settings.clip or float("inf")
        return float(nn.utils.clip_grad_norm_(self.parameters, limit))

    def step(self, step: int) -> None:
        """step: from 0, for the schedule"""
        rate = self.settings.learning_rate * self.settings.schedule.factor(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """raises: ValueError for the state of other settings"""
        if len(states) != len(self.optimizers):
            raise ValueError(f"{len(states)} optimiser states for {len(self.optimizers)} optimisers")
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def in_numbered_layer(name: str) -> bool:
    return any(piece.isdecimal() for piece in name.split("."))
