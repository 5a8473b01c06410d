"""What `shoal train` reads: every setting of a run, with defaults that suit a small model on ordinary links.

What stands in `data`, `batch.sequences`, `strategy`, `inner`, `group`, `seed` and `model` must be the same at all peers
of a run; the rest is each machine's own business. No torch here: a wrong key is told at once.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .limits import LimitSettings
from .optimizers.inner_settings import InnerSettings
from .pipeline.settings import PipelineSettings
from .strategies.settings import StrategySettings

Count = Annotated[int, Meta(ge=1)]
CountOrNone = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the config file."""


class DataSettings(Table, frozen=True):
    """files: files, folders or patterns, relative to the config; field: of the text in JSONL and Parquet

    sequence: tokens of one; isolate: documents in one sequence do not see one another
    tokenizer: a tokenizer.json or a folder with one; empty: the model's own
    """

    files: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    sequence: Annotated[int, Meta(ge=8, le=1 << 20)] = 512
    field: str = "text"
    isolate: bool = False
    tokenizer: str = ""


class BatchSettings(Table, frozen=True):
    """sequences: of one inner step of one peer; micro: of one forward pass, 0 for as many as fit the memory limit"""

    sequences: Count = 8
    micro: CountOrNone = 0
    checkpointing: bool = False  # compute activations again in the backward pass instead of keeping them
    precision: Literal["auto", "bf16", "float32"] = "auto"  # auto: bf16 on a GPU
    device: str = "auto"


class GroupSettings(Table, frozen=True):
    """As in `RunSpec`. shards: 0 for as many as suit the model's size

    patience: rounds that may be lost in a row before a peer stops training on alone
    """

    quorum: Annotated[int, Meta(ge=1, le=10_000)] = 2
    grace_s: Seconds = 10.0
    deadline_s: Seconds = 120.0
    shards: Annotated[int, Meta(ge=0, le=4096)] = 0
    robust: Literal["mean", "trimmed", "clipped"] = "mean"
    patience: Count = 3


class EvaluationSettings(Table, frozen=True):
    """every: rounds between two; sequences: of the held-out text, from its beginning"""

    every: CountOrNone = 10  # 0: never
    sequences: Count = 16


class OutputSettings(Table, frozen=True):
    """folder: of records, checkpoints and TensorBoard files; empty: NAME in the home's runs folder

    updates: keep what this peer offered, so that `shoal ledger shapley` can value it
    """

    folder: str = ""
    checkpoint_every: CountOrNone = 10  # rounds; 0: only at the end
    keep: Count = 3  # checkpoints
    tensorboard: bool = False
    updates: bool = False


class TrainingConfig(Table, frozen=True):
    name: Name
    data: DataSettings
    strategy: StrategySettings
    model: str = "novels-6m"  # embedded name, folder or hub id
    initial: Literal["weights", "random"] = "weights"
    seed: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0
    rounds: CountOrNone = 0  # 0: until stopped
    batch: BatchSettings = BatchSettings()
    inner: InnerSettings = InnerSettings()
    group: GroupSettings = GroupSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    limits: LimitSettings = LimitSettings()
    output: OutputSettings = OutputSettings()
    pipeline: PipelineSettings = PipelineSettings()


class ConfigFile(msgspec.Struct, frozen=True):
    """auto: the settings of the strategy that wait for the measured link: interval, preset"""

    config: TrainingConfig
    base: Path  # what paths in it are relative to
    auto: tuple[str, ...] = ()


def run_folder(file: ConfigFile, home: Path) -> Path:
    """Where a run's records and checkpoints lie. home: the node's data folder"""
    named = file.config.output.folder
    return file.base / Path(named).expanduser() if named else home / "runs" / file.config.name
