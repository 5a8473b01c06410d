"""A real process that keeps a ledger, killed with -9 at random instants."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "ledger_kill.py"


def bench() -> Any:  # noqa: ANN401  a script
    spec = importlib.util.spec_from_file_location("ledger_kill", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_process_killed_fifty_times_never_drifts_and_never_forks(tmp_path: Path) -> None:
    counts = bench().kill_often(tmp_path / "ledger.sqlite", kills=50, most_s=0.05)
    assert {name: counts[name] for name in ("drifted", "unbalanced", "forked", "lost")} == {
        "drifted": 0,
        "unbalanced": 0,
        "forked": 0,
        "lost": 0,
    }
    assert counts["entries"] > 100, "it worked between the kills"
    assert counts["settled_late"] > 0, "some were killed in the middle of sessions"
