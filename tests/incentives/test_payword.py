"""One hash a tick, and no word can be found from those before."""

import pytest

from shoal.incentives.payword import PayWords, pays, step_down


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
def test_every_word_pays_its_ticks_and_no_other_number(length: int) -> None:
    words = PayWords(bytes(range(16)), length)
    for ticks in range(length + 1):
        assert pays(words.word(ticks), words.root, ticks, length)
        assert not pays(words.word(ticks), words.root, ticks + 1, length + 1)


def test_words_follow_from_the_word_above_alone() -> None:
    words = PayWords(bytes(16), 10)
    assert step_down(words.word(7), 3) == words.word(4)
    assert not pays(words.word(4), words.word(7), 3, 10)


def test_a_claim_beyond_the_limit_costs_nothing_and_is_refused() -> None:
    assert not pays(bytes(16), bytes(16), 2**40, 100)
    assert not pays(bytes(15), bytes(16), 0, 100)
    assert not pays(bytes(16), bytes(16), -1, 100)
