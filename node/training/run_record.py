"""The open record of a run: JSON lines that let anyone re-check what was trained on, by whom, and to what state.

The first line holds the run's agreed settings and the rules of the data order; each further one a round: its peers
with their tokens, the hash of every aggregate, and the state before and after. With the same data anybody derives who
trained on which sequences; with the delta log, that the aggregates lead from one state to the next; and two peers'
records of the same run must say the same about every round.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from shoal.swarm.errors import OutOfMemory, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import Outcome, RunSpec

from .data.assignment import DataOrder, Roster

FORMAT = 1


class RunLine(msgspec.Struct, frozen=True, tag="run", forbid_unknown_fields=True):
    spec: RunSpec
    order: DataOrder
    lag: int  # rounds between a roster and the round whose shares it decides
    settings: dict[str, Any]  # what the peers agreed on, as in the config
    versions: dict[str, str]
    format: int = FORMAT


class RoundLine(msgspec.Struct, frozen=True, tag="round", forbid_unknown_fields=True):
    round: int
    fragment: int
    contributors: tuple[tuple[PeerId, int], ...]  # with their tokens
    aggregates: tuple[str, ...]  # hex sha256 of each shard's
    before: str  # hex, state of the outer parameters
    after: str
    roster: Roster  # after this round
    loss: float | None  # of this peer's own steps
    time: str  # of this peer's clock, ISO 8601


class EvaluationLine(msgspec.Struct, frozen=True, tag="evaluation", forbid_unknown_fields=True):
    round: int
    state: str  # of what was evaluated
    text: str  # digest of the held-out tokens
    sequences: int
    loss: float


RecordLine = RunLine | RoundLine | EvaluationLine
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[RecordLine] = msgspec.json.Decoder(RecordLine)


def round_line(
    outcome: Outcome, before: bytes, after: bytes, roster: Roster, loss: float | None, time: str
) -> RoundLine:
    hashes = tuple(hashlib.sha256(aggregate).hexdigest() for aggregate in outcome.aggregates)
    return RoundLine(
        outcome.round, outcome.fragment, outcome.contributors, hashes, before.hex(), after.hex(), roster, loss, time
    )


class RunRecord:
    """Appends; every line is on its way to the disk before `add` returns, and a line that was cut off is mended.

    A round stands in it once: who was killed replays rounds that are here already.
    """

    def __init__(self, path: Path) -> None:
        """raises: UsageError when the file cannot be written"""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_cut_line(path)
            self._known = _rounds_in(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UsageError(f"cannot write the record {path}: {error.strerror}") from error

    def add(self, line: RecordLine) -> None:
        """raises: OutOfMemory when the disk is full"""
        if isinstance(line, RoundLine):
            key = (line.round, line.fragment, line.after)
            if key in self._known:
                return
            self._known.add(key)
        try:
            self._file.write(_encoder.encode(line) + b"\n")
        except OSError as error:
            raise OutOfMemory(f"cannot write the record {self.path}: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()


def _drop_cut_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)


def _rounds_in(path: Path) -> set[tuple[int, int, str]]:
    """Round, fragment and the state after it. A line that was damaged is none here; `--check` names it."""
    found = set()
    for data in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            line = _decoder.decode(data)
            if isinstance(line, RoundLine):
                found.add((line.round, line.fragment, line.after))
    return found


def read_record(path: Path) -> list[RecordLine]:
    """raises: UsageError that names the line"""
    lines = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    lines.append(_decoder.decode(line))
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise UsageError(f"line {number} of {path} is not a line of a run's record: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    return lines


def spec_of(lines: Iterable[RecordLine]) -> RunSpec:
    """raises: UsageError for a record without its first line"""
    for line in lines:
        if isinstance(line, RunLine):
            return line.spec
    raise UsageError("the record does not begin with its run's settings")


def problems(lines: Iterable[RecordLine]) -> list[str]:
    """What is wrong with a record: states that do not follow one another, rosters that do not follow from rounds."""
    found: list[str] = []
    run: RunLine | None = None
    last: RoundLine | None = None
    for line in lines:
        match line:
            case RunLine():
                if run is not None and (line.spec, line.order) != (run.spec, run.order):
                    found.append("two runs in one record")
                run, last = line, None  # started again: rounds that were missed meanwhile are not in this record
            case RoundLine():
                if run is None:
                    found.append(f"round {line.round} stands before the run's settings")
                elif last is not None and line.round <= last.round and line.fragment == last.fragment:
                    found.append(f"round {line.round} after round {last.round}")
                elif last is not None and (line.round == last.round + 1 or line.before == last.after):
                    found += _break(run, last, line)
                last = line
            case EvaluationLine():
                if last is not None and line.round == last.round and line.state != last.after:
                    found.append(f"the evaluation after round {line.round} is of another state")
    return found


def _break(run: RunLine, last: RoundLine, line: RoundLine) -> list[str]:
    found = []
    if line.before != last.after:
        found.append(f"round {line.round} does not begin at the state that round {last.round} led to")
    expected = last.roster.after(run.order, line.round, tuple(peer for peer, _ in line.contributors))
    if line.roster != expected:
        found.append(f"the data order after round {line.round} does not follow from its peers")
    return found


def disagreements(one: Iterable[RecordLine], other: Iterable[RecordLine]) -> list[str]:
    """Where the records of two peers of one run differ. [] when every round that both have is the same."""
    first, second = (_rounds(lines) for lines in (one, other))
    return [
        f"round {number}, fragment {fragment}: the records disagree on {name}"
        for number, fragment in sorted(first.keys() & second.keys())
        for name in ("contributors", "aggregates", "before", "after", "roster")
        if getattr(first[number, fragment], name) != getattr(second[number, fragment], name)
    ]


def _rounds(lines: Iterable[RecordLine]) -> dict[tuple[int, int], RoundLine]:
    return {(line.round, line.fragment): line for line in lines if isinstance(line, RoundLine)}
