"""The settings of the inner optimiser, apart from it: a config is read without torch."""

from typing import Literal

import msgspec

from .schedules import Schedule


class InnerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """schedule: of the learning rate, counted in inner steps; clip: of the gradient's norm, 0 for none."""

    kind: Literal["adamw", "muon", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.95  # of muon
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # of matrices; vectors such as norms are left alone
    clip: float = 1.0
    schedule: Schedule = Schedule()

    def check(self) -> None:
        """raises: ValueError that names the key"""
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}, not above 0")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not in [0, 1)")
        if self.epsilon <= 0 or self.weight_decay < 0 or self.clip < 0:
            raise ValueError(f"epsilon is {self.epsilon}, weight_decay is {self.weight_decay}, clip is {self.clip}")
        self.schedule.check()
