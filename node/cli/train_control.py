"""The small services of `shoal train`: pause and resume a running training, check a run's record."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from shoal.swarm.errors import LocalFault, SwarmUnreachable
from shoal.swarm.home import Home

from .node_api import running_api
from .output import Output


def tell_training(home: Home, output: Output, *, pause: bool) -> None:
    """raises: SwarmUnreachable when none runs here"""
    node = running_api(home)
    if node is None:
        raise SwarmUnreachable("no training is running here")
    node.ask("POST", "/training/pause" if pause else "/training/continue")
    what = "paused" if pause else "continued"
    output.event(what, pid=node.facts.pid)
    output.line(f"the training of node {node.facts.name} is {what}")


def check_records(paths: Sequence[Path], output: Output) -> None:
    """raises: UsageError for a file that is no record; LocalFault when something in them does not fit"""
    from shoal.node.training.run_record import RoundLine, disagreements, problems, read_record

    records = {path: read_record(path) for path in paths}
    found: list[str] = []
    for path, lines in records.items():
        rounds = [line.round for line in lines if isinstance(line, RoundLine)]
        wrong = problems(lines)
        found += [f"{path}: {problem}" for problem in wrong]
        output.event("record", path=str(path), rounds=len(rounds), problems=wrong)
        output.line(f"{path}  {len(rounds)} rounds  {'; '.join(wrong) or 'consistent'}")
    for (one, first), (other, second) in combinations(records.items(), 2):
        wrong = disagreements(first, second)
        found += [f"{one} and {other}: {problem}" for problem in wrong]
        output.event("records", paths=[str(one), str(other)], problems=wrong)
        output.line(f"{one} and {other}  {'; '.join(wrong) or 'agree'}")
    if found:
        raise LocalFault(found[0])
