"""Which works run together: decode steps first, prompts in pieces, nobody starves."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.scheduler import Batch, Waiting, next_batch
from shoal.swarm.units import Span

ALL, PART = Span(0, 10), Span(3, 10)


def takes(batch: Batch | None) -> dict[int, int]:
    assert batch is not None
    return {take.key: take.count for take in batch.takes}


def test_nothing_waiting_gives_no_batch() -> None:
    assert next_batch([], 0) is None


def test_every_decode_step_runs_before_a_prompt_gets_the_room_that_is_left() -> None:
    waiting = [Waiting(1, ALL, 5000, 0), *(Waiting(key, ALL, 1, 0) for key in range(2, 12))]
    batch = next_batch(waiting, 1, tokens=64)
    assert takes(batch) == {1: 54} | dict.fromkeys(range(2, 12), 1)


def test_a_prompt_goes_on_even_when_decode_steps_fill_the_batch() -> None:
    waiting = [Waiting(1, ALL, 500, 0), *(Waiting(key, ALL, 1, 0) for key in range(2, 102))]
    assert takes(next_batch(waiting, 1, tokens=64))[1] == 8


def test_works_of_different_spans_never_share_a_batch_and_take_turns() -> None:
    waiting = [Waiting(1, ALL, 1000, 0), Waiting(2, PART, 1000, 0)]
    served = []
    for turn in range(4):
        batch = next_batch(waiting, turn, tokens=10)
        assert batch is not None
        (take,) = batch.takes
        served.append(take.key)
        waiting = [
            replace(work, turn=turn + 1, left=work.left - 10) if work.key == take.key else work for work in waiting
        ]
    assert served == [1, 2, 1, 2]


def test_two_long_prompts_take_turns_with_whole_pieces() -> None:
    first = next_batch([Waiting(1, ALL, 100, 0), Waiting(2, ALL, 100, 0)], 0, tokens=16)
    second = next_batch([Waiting(1, ALL, 84, 1), Waiting(2, ALL, 100, 0)], 1, tokens=16)
    assert (takes(first), takes(second)) == ({1: 16}, {2: 16})


def test_a_short_prompt_leaves_its_room_to_the_next_one() -> None:
    assert takes(next_batch([Waiting(1, ALL, 6, 0), Waiting(2, ALL, 100, 0)], 0, tokens=16)) == {1: 6, 2: 10}


def test_priority_decides_among_equally_old_prompts_and_age_in_the_end() -> None:
    poor, rich = Waiting(1, ALL, 100, 0), Waiting(2, ALL, 100, 0, priority=4.0)
    assert takes(next_batch([poor, rich], 0, tokens=16)) == {2: 16}
    assert takes(next_batch([poor, replace(rich, turn=9)], 9, tokens=16)) == {1: 16}


works = st.builds(
    Waiting,
    key=st.integers(0, 10**6),
    span=st.sampled_from([ALL, PART]),
    left=st.integers(1, 3000),
    turn=st.integers(0, 50),
    priority=st.floats(0.1, 10.0),
)


@given(st.lists(works, min_size=1, max_size=40, unique_by=lambda work: work.key), st.integers(8, 512))
def test_a_batch_has_one_span_and_takes_no_more_than_is_left(waiting: list[Waiting], tokens: int) -> None:
    batch = next_batch(waiting, 50, tokens)
    assert batch is not None
    by_key = {work.key: work for work in waiting}
    assert batch.takes
    assert len({take.key for take in batch.takes}) == len(batch.takes)
    for take in batch.takes:
        assert by_key[take.key].span == batch.span
        assert 1 <= take.count <= by_key[take.key].left
    steps = [take for take in batch.takes if by_key[take.key].left == 1]
    assert sum(take.count for take in batch.takes) - len(steps) <= max(tokens - len(steps), tokens // 8)


@given(st.lists(works, min_size=1, max_size=12, unique_by=lambda work: work.key))
def test_everything_that_waits_is_finished_in_the_end(waiting: list[Waiting]) -> None:
    left = {work.key: replace(work, left=min(work.left, 200), turn=0) for work in waiting}
    for turn in range(3000):
        batch = next_batch(list(left.values()), turn, tokens=32)
        if batch is None:
            break
        for take in batch.takes:
            work = left.pop(take.key)
            if work.left > take.count:
                left[take.key] = replace(work, left=work.left - take.count, turn=turn + 1)
    assert not left
