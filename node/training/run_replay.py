"""A run done again from what lies in its folder: every aggregate applied anew must lead to the state in the record.

The way begins at the run's first parameters where a config names them, else at the oldest checkpoint that is here, and
goes through the log of rounds as far as it leads. Nothing is written: the run may be going on.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from shoal.compression.errors import MalformedPayload
from shoal.compression.update_codec import Values
from shoal.swarm.errors import MalformedMessage, UsageError
from shoal.swarm.rounds.delta_entry import DeltaEntry, read_head, read_outcome
from shoal.swarm.rounds.exchange import Outcome, RunSpec
from shoal.swarm.rounds.run_identity import run_id

from .checkpoints.reader import load, saved_checkpoints
from .checkpoints.snapshot import Snapshot
from .config import ConfigFile
from .parameter_layout import ParameterLayout
from .run_record import RecordLine, RoundLine, spec_of
from .strategies.outer_parameters import OuterParameters
from .strategies.settings import StrategySettings
from .worker_keeper import CHECKPOINTS, LOG
from .worker_model import find_model, load_module


@dataclass(frozen=True, slots=True)
class Replay:
    """begin: where it began, in words; rounds: that were applied anew; problems: [] when all states came out"""

    begin: str
    rounds: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The state that a replay begins with."""

    name: str
    outer: OuterParameters


def first_parameters(file: ConfigFile, spec: RunSpec, cache: Path) -> Start:
    """What a config makes its run begin with. raises: UsageError when it is another run's; Unavailable (hub)"""
    from .parameters import ModelParameters

    model = find_model(file.config.model, file.config.initial, cache)
    parameters = ModelParameters(load_module(model, file.config.seed))
    values = parameters.read()
    if parameters.layout.model_hash(model.config, values) != spec.model:
        raise UsageError(f"the config's model, {model.name}, is not what the run {spec.name} began with")
    return Start("the first parameters", _outer(spec, parameters.layout, values))


def replayed(folder: Path, lines: Sequence[RecordLine], start: Start | None = None) -> Replay:
    """folder: a run's. raises: UsageError when there is nothing in it to begin with"""
    spec = spec_of(lines)
    problems: list[str] = []
    entries = dict(_entries(folder / LOG, run_id(spec), problems))
    begin = start or _oldest_start(folder / CHECKPOINTS, spec, entries, problems)
    told = {(line.round, line.fragment): line for line in lines if isinstance(line, RoundLine)}
    outer, rounds = begin.outer, 0
    while (entry := entries.get(outer.hash())) is not None:
        path = folder / LOG / f"{entry.round:010d}.delta"
        try:
            outcome = read_outcome(path, read_head(path, run_id(spec))[1])
            outer.apply(outcome)
        except (MalformedMessage, MalformedPayload, ValueError, OSError) as error:
            problems.append(f"round {entry.round} cannot be done again: {error}")
            break
        rounds += 1
        problems += _differences(entry, outcome, outer.hash().hex(), told.get((outcome.round, outcome.fragment)))
        if problems:
            break
    last = next((line for line in reversed(lines) if isinstance(line, RoundLine)), None)
    if last is not None and not problems and last.after != outer.hash().hex():
        where = f"{rounds} rounds from {begin.name} on" if rounds else begin.name
        problems.append(f"the log does not lead from {where} to round {last.round}, the last of the record")
    return Replay(begin.name, rounds, tuple(problems))


def _entries(folder: Path, run: str, problems: list[str]) -> Iterator[tuple[bytes, DeltaEntry]]:
    """By the state that each round starts from."""
    for path in sorted(folder.glob("*.delta")):
        try:
            entry, _ = read_head(path, run)
        except (MalformedMessage, OSError) as error:
            problems.append(str(error))
            continue
        yield entry.about.before, entry


def _oldest_start(folder: Path, spec: RunSpec, entries: Iterable[bytes], problems: list[str]) -> Start:
    """raises: UsageError"""
    known = set(entries)
    usable: Start | None = None
    for saved in reversed(saved_checkpoints(folder)):
        try:
            snapshot = load(saved)
            found = Start(f"checkpoint {saved.name}", _restored(spec, snapshot))
        except (UsageError, ValueError) as error:
            problems.append(str(error))
            continue
        if snapshot.state in known:
            return found
        usable = usable or found
    if usable is None:
        raise UsageError(f"{folder} holds no checkpoint to begin with; name the run's config too")
    return usable


def _restored(spec: RunSpec, snapshot: Snapshot) -> OuterParameters:
    """raises: UsageError"""
    layout = ParameterLayout.of({name: tuple(array.shape) for name, array in snapshot.parameters.items()})
    outer = _outer(spec, layout, np.zeros(layout.count, np.float32))
    outer.restore(snapshot.outer_state)
    if snapshot.run != run_id(spec) or outer.hash() != snapshot.state:
        raise UsageError(f"the checkpoint after round {snapshot.round} is of another run or state than it says")
    return outer


def _outer(spec: RunSpec, layout: ParameterLayout, initial: Values) -> OuterParameters:
    """raises: UsageError"""
    try:
        settings = msgspec.json.decode(spec.strategy, type=StrategySettings)
    except msgspec.MsgspecError as error:
        raise UsageError(f"the run's strategy is of another version of shoal ({error})") from error
    return OuterParameters(settings.outer, spec, initial, layout.undecayed())


def _differences(entry: DeltaEntry, outcome: Outcome, state: str, told: RoundLine | None) -> list[str]:
    if state != entry.about.after.hex():
        return [f"the aggregates of round {entry.round} lead to another state than the log says"]
    if told is None:
        return [f"the log has round {entry.round}, the record does not"]
    hashes = tuple(hashlib.sha256(aggregate).hexdigest() for aggregate in outcome.aggregates)
    facts = {
        "aggregates": (hashes, told.aggregates),
        "contributors": (outcome.contributors, told.contributors),
        "before": (entry.about.before.hex(), told.before),
        "after": (state, told.after),
    }
    return [
        f"round {entry.round}: {name} in the record is not what the log holds"
        for name, (held, written) in facts.items()
        if held != written
    ]
