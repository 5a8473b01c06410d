"""Receipts that somebody has tampered with; `scripts/bench/ledger.py` shows a million of them."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401  a script
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import receipt_mutations

    yield receipt_mutations
    sys.modules.pop("receipt_mutations")


@pytest.mark.parametrize("seed", range(4))
def test_no_tampered_receipt_is_accepted_convicts_or_pays(bench: Any, seed: int) -> None:  # noqa: ANN401
    outcome = asdict(bench.tamper_often(5000, seed))
    assert outcome["shown"] == 5000
    assert outcome["malformed"] > 500, "many are not even read"
    assert outcome["refused"] > 1000, "many are read and judged"
    wrong = {name: outcome[name] for name in ("accepted_wrongly", "convicted_wrongly", "paid_wrongly")}
    assert wrong == {"accepted_wrongly": 0, "convicted_wrongly": 0, "paid_wrongly": 0}
