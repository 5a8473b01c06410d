from pathlib import Path

import msgspec
import pytest
from training.local_exchange import peers, run_spec

from shoal.node.training.data.assignment import DataOrder, Roster
from shoal.node.training.run_record import (
    EvaluationLine,
    RecordLine,
    RoundLine,
    RunLine,
    RunRecord,
    disagreements,
    problems,
    read_record,
    round_line,
)
from shoal.swarm.errors import UsageError
from shoal.swarm.rounds.exchange import Outcome

ORDER = DataOrder("0" * 64, windows=100, share=4, seed=7)


def state(number: int) -> bytes:
    return bytes([number]) * 32


def lines(rounds: int = 4) -> list[RecordLine]:
    found: list[RecordLine] = [RunLine(run_spec([9000]), ORDER, 0, {"name": "test"}, {"shoal": "1"})]
    roster = Roster()
    for number in range(rounds):
        outcome = Outcome(number, 0, (b"a", b"b"), tuple((peer, 5) for peer in peers(2)))
        roster = roster.after(ORDER, number, peers(2))
        found.append(round_line(outcome, state(number), state(number + 1), roster, 1.5, "2026-01-01T00:00:00Z"))
    found.append(EvaluationLine(rounds - 1, state(rounds).hex(), "ff", 4, 3.0))
    return found


def changed(line: RecordLine, **values: object) -> RecordLine:
    return msgspec.structs.replace(line, **values)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "deep" / "record.jsonl")
    for line in lines():
        record.add(line)
    record.close()
    assert read_record(record.path) == lines()
    assert problems(read_record(record.path)) == []


def test_a_line_that_was_cut_off_is_dropped_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    record = RunRecord(path)
    for line in lines():
        record.add(line)
    record.close()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="line 6 of"):
        read_record(path)
    RunRecord(path).close()
    assert read_record(path) == lines()[:-1]


def test_rounds_that_are_replayed_after_a_kill_stand_in_the_record_once(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    for first in (0, 2):  # the second start replays rounds 1 and 2 of its log, then trains on
        record = RunRecord(path)
        for line in lines()[first : first + 4]:
            record.add(line)
        record.close()
    assert read_record(path) == lines()
    assert problems(read_record(path)) == []


def test_states_that_do_not_follow_one_another_are_found() -> None:
    found = lines()
    found[3] = changed(found[3], before=state(9).hex())
    assert problems(found) == ["round 2 does not begin at the state that round 1 led to"]


def test_a_data_order_that_does_not_follow_from_the_peers_is_found() -> None:
    found = lines()
    third = found[3]
    assert isinstance(third, RoundLine)
    found[3] = changed(third, roster=msgspec.structs.replace(third.roster, taken=third.roster.taken + 1))
    assert "the data order after round 2 does not follow from its peers" in problems(found)
    found[3] = changed(third, contributors=(("stranger", 5),))
    assert "the data order after round 2 does not follow from its peers" in problems(found)


def test_rounds_that_go_back_and_evaluations_of_other_states_are_found() -> None:
    found = lines()
    found.insert(3, found[2])
    assert problems(found) == ["round 1 after round 1"]
    found = lines()
    found[-1] = changed(found[-1], state=state(1).hex())
    assert problems(found) == ["the evaluation after round 3 is of another state"]
    assert problems(lines()[1:])[0] == "round 0 stands before the run's settings"


def test_a_start_after_missed_rounds_begins_a_new_chain() -> None:
    found = lines()
    assert problems([*found[:3], found[0], *found[4:]]) == []


def test_two_peers_that_tell_different_things_are_told_apart() -> None:
    other = lines()
    assert disagreements(lines(), other) == []
    other[2] = changed(other[2], aggregates=("00", "11"), after=state(7).hex())
    assert disagreements(lines(), other) == [
        "round 1, fragment 0: the records disagree on aggregates",
        "round 1, fragment 0: the records disagree on after",
    ]
    assert disagreements(lines(), other[:2]) == []
