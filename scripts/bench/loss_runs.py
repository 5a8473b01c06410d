"""The runs that `training_loss.py` knows by name: strategies at equal tokens, and rounds with liars in them."""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from shoal.compression.aggregate import Contribution, weighted_mean
from shoal.compression.update_codec import Values
from shoal.node.training.local_exchange import Combine
from shoal.node.training.optimizers.inner_settings import InnerSettings
from shoal.node.training.optimizers.outer import OuterSettings
from shoal.node.training.optimizers.schedules import Schedule
from shoal.node.training.strategies.outer_loop import LiveParameters
from shoal.node.training.strategies.settings import StrategySettings, strategy_settings
from shoal.node.training.strategies.strategy import Strategy
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.gates import gates_of, refusals
from shoal.swarm.rounds.robust import reduce_contributions

STEPS, INTERVAL, WORKERS, BATCH, SEQUENCE = 300, 3, 4, 16, 64
WARM_STEPS, WARM_SEED = 2000, 100  # of the start of all runs; their settings were sought on this seed too
COLD_STEPS, COLD_INTERVAL, COLD_WORKERS = 200, 5, 10  # of the runs with liars
LEARNING_RATE, BETA2, WEIGHT_DECAY = 3e-3, 0.999, 0.1
REPLICAS_RATE = 3.6e-3  # of replicas that are averaged (`diloco`, `streaming`); `sync` is worse at it
STEADY = Schedule()


@dataclass(frozen=True)
class Run:
    """batch: sequences of one worker's step; liars: how many of the workers multiply their update by `lie`
    defence: "none", or what `RunSpec.robust` may be, behind the gates; against: the run to compare the loss with"""

    name: str
    strategy: StrategySettings
    against: str = ""
    learning_rate: float = LEARNING_RATE
    schedule: Schedule = STEADY  # of the learning rate
    beta2: float = BETA2
    steps: int = STEPS
    workers: int = WORKERS
    batch: int = BATCH
    liars: int = 0
    lie: float = 1.0
    defence: str = "none"
    cold: bool = False  # begins with parameters that the seed draws, not with the warm model
    plotted: bool = False

    @property
    def inner(self) -> InnerSettings:
        return InnerSettings(
            learning_rate=self.learning_rate,
            beta2=self.beta2,
            weight_decay=WEIGHT_DECAY,
            schedule=self.schedule,
        )

    @property
    def tokens(self) -> int:
        return self.steps * self.workers * self.batch * SEQUENCE

    def spec(self, fragments: tuple[int, ...]) -> RunSpec:
        return RunSpec(
            name=self.name,
            model="small llama",
            data="novels",
            strategy=self.strategy.canonical(),
            fragments=fragments,
            preset=self.strategy.preset,
            shards=self.workers,
            quorum=self.workers,
            reducer_decay=self.strategy.reducer_decay,
            robust="mean" if self.defence == "none" else self.defence,
        )

    def combine(self, refused: Counter[PeerId]) -> Combine:
        """refused: where contributions are counted that the gates leave out, by who made them"""
        if self.defence == "none":
            return weighted_mean
        spec = self.spec((1,))

        def combined(contributions: Sequence[Contribution]) -> Values:
            refused.update(refusals(contributions, gates_of(spec.robust)).keys())
            return reduce_contributions(spec, contributions)

        return combined

    def described(self) -> str:
        """A short hash of all settings, so that a changed run is done again."""
        plain = dataclasses.asdict(dataclasses.replace(self, plotted=False, against=""))
        return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()[:12]


class Liar:
    """Live parameters of a peer that offers `factor` times its honest update."""

    def __init__(self, honest: LiveParameters, strategy: Strategy, factor: float) -> None:
        self.honest, self.strategy, self.factor = honest, strategy, factor

    def read(self, start: int = 0, stop: int | None = None) -> Values:
        outer = self.strategy.outer.values[start:stop]
        return np.asarray(outer - np.float32(self.factor) * (outer - self.honest.read(start, stop)), np.float32)

    def gradients(self, start: int = 0, stop: int | None = None) -> Values:
        return np.asarray(np.float32(self.factor) * self.honest.gradients(start, stop), np.float32)

    def write(self, start: int, values: Values) -> None:
        self.honest.write(start, values)


def cosine(steps: int = STEPS) -> Schedule:
    return Schedule("cosine", warmup=steps // 12, total=steps, final=0.05)


def falling(steps: int = STEPS) -> Schedule:
    """Falls later than a cosine: replicas that are averaged are less noisy, and gain less from a small rate."""
    return Schedule("wsd", warmup=steps // 12, total=steps, decay=0.6, final=0.05)


def adamw(learning_rate: float, schedule: Schedule) -> OuterSettings:
    return OuterSettings(
        "adamw", learning_rate=learning_rate, beta2=BETA2, weight_decay=WEIGHT_DECAY, schedule=schedule
    )


def _runs() -> list[Run]:
    plain = OuterSettings("sgd", learning_rate=1.0)
    nesterov = OuterSettings("nesterov", learning_rate=0.7, momentum=0.5)
    diloco = strategy_settings("diloco", interval=INTERVAL, outer=nesterov)
    streaming = strategy_settings("streaming", interval=INTERVAL, fragments=2, delay=1, outer=nesterov)
    sparse = strategy_settings("sparse", interval=INTERVAL, outer=plain)
    runs = [
        Run("sync", strategy_settings("sync", outer=adamw(LEARNING_RATE, falling())), schedule=falling(), plotted=True),
        Run("diloco", diloco, "sync", REPLICAS_RATE, falling(), plotted=True),
        Run("streaming", streaming, "diloco", REPLICAS_RATE, falling(), plotted=True),
        Run("sparse", sparse, "diloco", schedule=falling(), plotted=True),
        Run("cocktail", strategy_settings("cocktail", outer=adamw(LEARNING_RATE, cosine())), "sync", plotted=True),
    ]
    of_ten = functools.partial(
        Run,
        strategy=strategy_settings("diloco", interval=COLD_INTERVAL, outer=plain),
        schedule=cosine(COLD_STEPS),
        workers=COLD_WORKERS,
        batch=2,
        steps=COLD_STEPS,
        cold=True,
    )
    runs.append(of_ten("ten"))
    runs.extend(
        of_ten(f"{lie}-{defence}", against="ten", liars=3, lie=factor, defence=defence)
        for lie, factor in (("flipped", -1.0), ("x1000", 1000.0))
        for defence in ("none", "mean", "trimmed", "clipped")
    )
    return runs


# Where all runs start, so that strategies are compared on a model that is past its first words: plain AdamW at a rate
# that stays (one worker whose outer step is its own update).
# source: Douillard et al., arXiv:2311.08105, who start all of theirs from a model that was trained synchronously
WARM = Run(
    "warm",
    strategy_settings("diloco", interval=WARM_STEPS // 20, outer=OuterSettings("sgd", learning_rate=1.0)),
    schedule=Schedule(warmup=WARM_STEPS // 20),
    steps=WARM_STEPS,
    workers=1,
    batch=BATCH,
)
RUNS = {run.name: run for run in _runs()}
