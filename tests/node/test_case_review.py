"""How far somebody else's case is computed again: no further than it can matter, and no statement twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from incentives.case_samples import CHUNKS, SECRET, STATEMENT, against, chunk, reports
from incentives.work_samples import CLIENT, signed

from shoal.incentives import audit_case
from shoal.incentives.audit_case import FALSE, AuditCase, CaseChunk, examined, is_open, verdict_of
from shoal.incentives.audit_report import AuditReport, Judgement
from shoal.incentives.audit_threshold import Finding
from shoal.node.audit_memory import AuditMemory
from shoal.node.case_review import Review, reviewed
from shoal.swarm.identity import Identity

ME = Identity(bytes([33]) * 32).public_key
CLEAR, NEAR, AWAY = 0.001, 0.0095, 1.0


@dataclass
class Auditors:
    """`AuditDriver` whose auditors find what they are told. looked_at: indices, in order"""

    find: Callable[[int], Sequence[float]]
    looked_at: list[int] = field(default_factory=list)

    async def reports(self, _: object, __: object, index: int, *___: object, **____: object) -> list[AuditReport]:
        self.looked_at.append(index)
        return reports(index, *self.find(index))

    def learn(self, _: Sequence[AuditReport], __: Judgement) -> None:
        return


def case_of(*indices: int) -> AuditCase:
    """Chunks that its makers call false, whatever they are."""
    shown: tuple[CaseChunk, ...] = tuple(chunk(index, AWAY, AWAY, AWAY) for index in indices)
    return AuditCase(audit_case.work_statement.encode(STATEMENT), SECRET, shown)


def review(case: AuditCase, find: Callable[[int], Sequence[float]]) -> tuple[Review, list[int]]:
    driver: Any = Auditors(find)

    async def run() -> Review:
        return await reviewed(driver, case, STATEMENT, CLIENT.peer_id, ME)

    return anyio.run(run), driver.looked_at


def test_an_invented_case_costs_one_chunk_and_blames_its_maker() -> None:
    found, looked_at = review(case_of(0, 1), lambda _: (CLEAR, CLEAR, CLEAR))
    assert looked_at == [1]
    assert found.own is None
    assert found.refuted
    assert found.settled


def test_a_case_that_is_borne_out_becomes_an_own_one() -> None:
    found, looked_at = review(case_of(0, 1), lambda _: (AWAY, AWAY, AWAY))
    assert looked_at == [1, 0]
    assert found.own is not None
    assert found.findings == (Finding.GROSS, Finding.GROSS)
    assert not found.refuted
    assert examined(audit_case.encode(found.own), verdict_of(found.own, FALSE)).problem == ""


def test_half_a_case_convicts_nobody_and_blames_nobody() -> None:
    found, looked_at = review(case_of(0, 1), lambda index: (AWAY,) * 3 if index else (CLEAR,) * 3)
    assert looked_at == [1, 0]
    assert found.own is None
    assert not found.refuted


def test_whoever_may_have_rounded_to_the_other_side_of_the_limit_is_not_blamed() -> None:
    found, _ = review(case_of(0, 1), lambda _: (NEAR, NEAR, NEAR))
    assert found.own is None
    assert not found.refuted


def test_a_chunk_that_nobody_could_judge_leaves_the_case_open_for_another_time() -> None:
    found, looked_at = review(case_of(0, 1), lambda _: (AWAY, CLEAR))
    assert looked_at == [1], "with the last chunk undecided the first alone convicts nobody"
    assert found.own is None
    assert not found.refuted
    assert not found.settled


def test_a_case_that_shows_more_than_it_takes_is_none() -> None:
    assert examined(audit_case.encode(case_of(0, 1)), verdict_of(case_of(0, 1), FALSE)).problem == ""
    longer = case_of(0, 1, 2)
    assert "more is shown" in examined(audit_case.encode(longer), verdict_of(longer, FALSE)).problem
    honest = against(0, 1, 2)
    assert honest is not None
    assert examined(audit_case.encode(honest), verdict_of(honest, FALSE)).problem == ""


@pytest.mark.parametrize(
    ("found", "left", "still"),
    [
        ({}, (0, 1), True),
        ({}, (0,), False),
        ({1: Finding.SOUND}, (0,), False),
        ({1: Finding.GROSS}, (0,), True),
        ({0: Finding.GROSS, 1: Finding.GROSS}, (2,), False),
    ],
)
def test_a_case_is_open_while_what_is_left_can_change_it(
    found: dict[int, Finding], left: tuple[int, ...], *, still: bool
) -> None:
    statement = signed(CHUNKS)[0]
    assert is_open(statement, found, left) == still


def test_what_was_reviewed_is_remembered_over_a_restart_and_forgotten_after_a_month(tmp_path: Path) -> None:
    now = [0.0]
    memory = AuditMemory(tmp_path / "audits.sqlite", lambda: now[0])
    memory.note_review(b"a" * 32)
    memory.close()
    memory = AuditMemory(tmp_path / "audits.sqlite", lambda: now[0])
    assert memory.was_reviewed(b"a" * 32)
    assert not memory.was_reviewed(b"b" * 32)
    now[0] = 31 * 86_400.0
    memory.note_review(b"b" * 32)
    assert not memory.was_reviewed(b"a" * 32)
    memory.close()
