"""The five strategies by name. They are one method with other numbers: how often which part of the model is exchanged,
what is offered, how it is compressed, and which optimiser applies the outcome.

| name | offers | each | applied |
|---|---|---|---|
| sync | the gradient | step | at once, by AdamW |
| cocktail | the gradient, compressed | step | one step later, by AdamW |
| diloco | what H inner steps changed | H steps | at once, by Nesterov |
| streaming | the same of one fragment after another, in 4 bits | H steps | tau steps later, merged |
| sparse | the same, the signs of its largest values | H steps | at once, by plain SGD |

source: Wang et al., CocktailSGD, ICML 2023; Douillard et al., DiLoCo, arXiv:2311.08105, and Streaming DiLoCo,
arXiv:2501.18512; Sarfi et al., SparseLoCo, arXiv:2508.15706; Xu et al., Step-Ahead Error Feedback, arXiv:2008.05823
"""

from typing import Any, Literal

import msgspec

from shoal.compression.presets import preset
from shoal.node.training.optimizers.outer import OuterSettings


class StrategySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """interval: H, inner steps between two exchanges of the same fragment
    fragments: parts of the model that take turns, their exchanges spread evenly over H
    delay: tau, inner steps between offering a fragment and applying the outcome; the exchange runs meanwhile
    merge: alpha, share of the local parameters that is kept when the outcome is applied
    feedback: decay of the sender's error feedback, 0 for none; reducer_decay: of the reducers'
    ahead: share of what the encoder left out by which the local parameters go on ahead of the outer ones
    """

    name: str
    update: Literal["gradient", "pseudo-gradient"]
    interval: int = 30
    fragments: int = 1
    delay: int = 0
    merge: float = 0.0
    preset: str = "none"
    feedback: float = 0.0
    ahead: float = 0.0
    reducer_decay: float = 1.0
    outer: OuterSettings = OuterSettings()

    def check(self) -> None:
        """raises: ValueError that names the key"""
        if self.interval < 1:
            raise ValueError(f"interval is {self.interval}; at least one inner step must lie between two exchanges")
        if not 1 <= self.fragments <= self.interval:
            raise ValueError(f"fragments is {self.fragments}; between 1 and the interval of {self.interval} steps")
        if not 0 <= self.delay <= self.interval // self.fragments:
            raise ValueError(
                f"delay is {self.delay}; at most {self.interval // self.fragments} steps, as one exchange must be "
                "applied before the next is offered"
            )
        for name in ("merge", "feedback", "ahead", "reducer_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not between 0 and 1")
        if self.update == "gradient" and (self.fragments, self.interval, self.merge) != (1, 1, 0):
            raise ValueError("gradients are exchanged whole and each step: interval 1, fragments 1, merge 0")
        if self.ahead and (self.update == "gradient" or self.delay or self.merge):
            raise ValueError(
                f"ahead is {self.ahead}; 0 unless pseudo-gradients are exchanged and applied at once (delay 0, merge 0)"
            )
        preset(self.preset)
        self.outer.check()

    def canonical(self) -> str:
        """What `RunSpec.strategy` holds: every setting, defaults too, in a fixed order."""
        return msgspec.json.encode(self, order="sorted").decode()


STRATEGIES: dict[str, StrategySettings] = {
    settings.name: settings
    for settings in (
        StrategySettings(
            "sync", "gradient", interval=1, outer=OuterSettings(kind="adamw", learning_rate=1e-3, weight_decay=0.1)
        ),
        StrategySettings(
            "cocktail",
            "gradient",
            interval=1,
            delay=1,
            preset="cocktail",
            feedback=1.0,
            outer=OuterSettings(kind="adamw", learning_rate=1e-3, weight_decay=0.1),
        ),
        StrategySettings("diloco", "pseudo-gradient", outer=OuterSettings("nesterov", learning_rate=0.7, momentum=0.9)),
        StrategySettings(
            "streaming",
            "pseudo-gradient",
            fragments=3,
            delay=5,
            merge=0.5,
            preset="fp4",
            feedback=1.0,
            outer=OuterSettings("nesterov", learning_rate=0.7, momentum=0.9),
        ),
        StrategySettings(
            "sparse",
            "pseudo-gradient",
            preset="sparse",
            feedback=1.0,
            ahead=1.0,
            outer=OuterSettings("sgd", learning_rate=1.0),
        ),
    )
}


def strategy_settings(name: str, **changes: Any) -> StrategySettings:  # noqa: ANN401  the fields of StrategySettings
    """A named strategy with some settings changed.

    raises: ValueError for a name, key or value that there is not; it names the key
    """
    if name not in STRATEGIES:
        raise ValueError(f"no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    unknown = sorted(changes.keys() - set(StrategySettings.__struct_fields__))
    if unknown:
        raise ValueError(f"no setting {unknown[0]!r} of a strategy")
    try:
        settings = msgspec.convert(
            msgspec.to_builtins(msgspec.structs.replace(STRATEGIES[name], **changes)), StrategySettings
        )
    except (msgspec.ValidationError, TypeError) as error:
        raise ValueError(f"strategy {name}: {error}") from error
    settings.check()
    return settings
