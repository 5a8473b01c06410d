"""A run on disk, ready to be valued: its model, its held-out text and its rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal.swarm.errors import UsageError
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.run_identity import differences, run_id

from .config import ConfigFile
from .data.windows import Windows
from .strategies.outer_parameters import OuterParameters
from .valuation import Judge
from .valued_replay import RunReplay
from .valued_rounds import read_rounds
from .worker_keeper import SPEC
from .worker_parts import run_spec
from .worker_start import prepared


@dataclass(frozen=True, slots=True, eq=False)
class ValuedRun:
    """text: what was trained on"""

    judge: Judge
    replay: RunReplay
    text: Windows


def open_run(file: ConfigFile, folder: Path, others: Sequence[Path], cache: Path, sequences: int) -> ValuedRun:
    """folder: of the run, as `shoal train` leaves it; others: those of other peers

    raises: UsageError, OutOfMemory, Unavailable (hub)
    """
    if file.auto:
        raise UsageError(f"strategy.{file.auto[0]} is auto: write what the run agreed on into the config")
    if file.config.pipeline.cut:
        raise UsageError("a run in stages cannot be valued: no machine holds the whole model")
    ready = prepared(file, cache)
    if ready.data.held_out is None:
        raise UsageError("data.held_out names no text to value by")
    spec = run_spec(ready, file.config)
    _check(folder, spec)
    rounds = read_rounds(folder, others, run_id(spec), spec)
    initial = ready.parameters.read()
    undecayed = ready.parameters.layout.undecayed()
    settings = file.config.strategy.outer
    if OuterParameters(settings, spec, initial, undecayed).hash() != rounds[0].before:
        raise UsageError(f"the log in {folder} does not begin at the start of the run: its oldest rounds were dropped")
    judge = Judge(ready.steps, ready.parameters, ready.data.held_out, sequences)
    return ValuedRun(judge, RunReplay(settings, spec, initial, undecayed, rounds), ready.data.windows)


def _check(folder: Path, spec: RunSpec) -> None:
    """raises: UsageError when the folder is of another run, or of none"""
    try:
        found = msgspec.json.decode((folder / SPEC).read_bytes(), type=RunSpec)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"{folder} is not the folder of a training; give the config that it was started with"
        ) from error
    if found != spec:
        raise UsageError(f"{folder} holds another run than the config describes ({differences(spec, found)})")
