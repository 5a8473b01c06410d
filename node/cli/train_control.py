"""The small services of `shoal train`: pause and resume a running training, check a run's record."""

import os
import signal
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from shoal.swarm.errors import LocalFault, SwarmUnreachable
from shoal.swarm.home import Home
from shoal.swarm.node_lock import running

from .output import Output

PAUSE, RESUME = signal.SIGUSR1, signal.SIGUSR2
MARK = "training.pid"  # in the home: written by a training, so that no other process gets its signals


def signal_training(home: Home, output: Output, *, pause: bool) -> None:
    """raises: SwarmUnreachable when none runs here"""
    live = running(home.lock)
    try:
        training = int((home.root / MARK).read_text())
    except (OSError, ValueError):
        training = 0
    if live is None or live[0] != training:
        raise SwarmUnreachable("no training is running here")
    os.kill(training, PAUSE if pause else RESUME)
    what = "paused" if pause else "continued"
    output.event(what, pid=training)
    output.line(f"training (pid {training}) is {what}")


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
