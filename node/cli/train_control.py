"""The small services of `shoal train`: pause and resume a running training, check a run's record."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.swarm.errors import LocalFault, SwarmUnreachable, UsageError
from shoal.swarm.home import Home

from .node_api import running_api
from .output import Output

if TYPE_CHECKING:
    from shoal.node.training.config import ConfigFile
    from shoal.node.training.run_record import RecordLine


def tell_training(home: Home, output: Output, *, pause: bool) -> None:
    """raises: SwarmUnreachable when none runs here"""
    node = running_api(home)
    if node is None:
        raise SwarmUnreachable("no training is running here")
    node.ask("POST", "/training/pause" if pause else "/training/continue")
    what = "paused" if pause else "continued"
    output.event(what, pid=node.facts.pid)
    output.line(f"the training of node {node.facts.name} is {what}")


def check_records(paths: Sequence[Path], file: "ConfigFile | None", home: Home, output: Output) -> None:
    """paths: of records, or of runs' folders, whose rounds are done again; file: the config that the runs began with

    raises: UsageError for what is neither; LocalFault when something in them does not fit
    """
    from shoal.node.training.run_record import RoundLine, disagreements, problems, read_record
    from shoal.node.training.worker_keeper import RECORD

    records = {path: read_record(path / RECORD if path.is_dir() else path) for path in paths}
    if file is not None and not any(path.is_dir() for path in paths):
        raise UsageError("with a config, --check wants a run's folder, whose rounds it does again")
    found: list[str] = []
    for path, lines in records.items():
        rounds = [line.round for line in lines if isinstance(line, RoundLine)]
        wrong = problems(lines)
        said = ["consistent"]
        facts: dict[str, object] = {}
        if path.is_dir() and not wrong:
            facts, wrong, text = _done_again(path, lines, file, home)
            said.append(text)
        found += [f"{path}: {problem}" for problem in wrong]
        output.event("record", path=str(path), rounds=len(rounds), problems=wrong, **facts)
        output.line(f"{path}  {len(rounds)} rounds  {'; '.join(wrong or said)}")
    for (one, first), (other, second) in combinations(records.items(), 2):
        wrong = disagreements(first, second)
        found += [f"{one} and {other}: {problem}" for problem in wrong]
        output.event("records", paths=[str(one), str(other)], problems=wrong)
        output.line(f"{one} and {other}  {'; '.join(wrong) or 'agree'}")
    if found:
        raise LocalFault(found[0])


def _done_again(
    folder: Path, lines: "Sequence[RecordLine]", file: "ConfigFile | None", home: Home
) -> tuple[dict[str, object], list[str], str]:
    """Facts for `--json`, problems, and what to say where there are none. raises: UsageError"""
    from shoal.node.training.run_record import spec_of
    from shoal.node.training.run_replay import first_parameters, replayed

    start = None if file is None else first_parameters(file, spec_of(lines), home.cache)
    replay = replayed(folder, lines, start)
    facts = {"done_again": replay.rounds, "began": replay.begin}
    text = f"{replay.rounds} rounds done again from {replay.begin}, every state came out"
    return facts, list(replay.problems), text
