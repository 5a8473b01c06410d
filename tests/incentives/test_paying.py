"""One session between a payer and tills: who is at risk of what, whatever the messages do on their way."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.incentives import payword
from shoal.incentives.bodies import TICK_TOKENS, Open
from shoal.incentives.payer import Payer
from shoal.incentives.payword import PayWords
from shoal.incentives.till import AHEAD, Till

SEED = bytes(range(16))


def pair(most_tokens: int = 640) -> tuple[Payer, Till]:
    payer = Payer(SEED, most_tokens)
    return payer, Till(bytes(32), payer.open(bytes(32), b"s", 100), TICK_TOKENS)


def step(payer: Payer, till: Till, count: int) -> bool:
    """Feed so many positions with the word that is due; whether the server computed them."""
    word = payer.tick()
    if (word and till.take(word)) or till.admit(count):
        return False
    till.compute(count)
    payer.arrived(till.computed)
    return True


def test_an_honest_session_is_never_stopped_and_neither_side_is_at_risk_of_more_than_a_tick() -> None:
    payer, till = pair()
    for start in range(0, 96, TICK_TOKENS):  # the prompt, in slices
        assert step(payer, till, TICK_TOKENS), start
        assert 0 <= till.unpaid <= TICK_TOKENS
    for _ in range(400):
        assert step(payer, till, 1)
        assert 0 <= till.unpaid <= TICK_TOKENS
        assert till.ticks * TICK_TOKENS <= payer.came, "the client paid nothing that had not come"
    close = till.close()
    assert close is not None
    assert close.ticks == till.ticks == (96 + 400 - 1) // TICK_TOKENS
    assert payword.pays(close.word, till.terms.root, close.ticks, till.terms.most_ticks)


def test_the_last_full_tick_is_paid_by_the_word_after_the_last_token() -> None:
    payer, till = pair()
    assert step(payer, till, 32)
    assert till.ticks == 0
    assert till.take(payer.tick()) is None
    assert till.ticks == 1
    assert payer.tick() == b""


def test_the_last_word_goes_again_only_when_it_may_not_have_arrived() -> None:
    payer, till = pair()
    assert payer.last() == b""
    assert step(payer, till, 32)
    assert till.take(payer.last()) is None, "no position went after it that could have brought it"
    assert till.ticks == 1
    word = payer.tick()
    assert payer.last() == word, "it rides on positions that have not come back"
    till.compute(1)
    payer.arrived(33)
    assert payer.last() == b""
    payer.arrived(64)
    assert till.take(payer.last()) is None
    assert till.ticks == 2


@pytest.mark.parametrize("stops_after", [0, 1, 5])
def test_a_client_that_stops_paying_is_stopped_after_32_tokens(stops_after: int) -> None:
    payer, till = pair()
    for _ in range(stops_after * TICK_TOKENS):
        assert step(payer, till, 1)
    till.take(payer.tick())
    served = 0
    while till.admit(1) is None:
        till.compute(1)
        served += 1
        assert served < 1000
    assert served == TICK_TOKENS == till.unpaid


def test_a_prompt_longer_than_the_bound_is_refused_before_it_is_computed() -> None:
    _, till = pair()
    assert till.admit(33) is not None
    assert till.admit(32) is None


def test_a_client_that_sends_made_up_words_is_stopped() -> None:
    payer, till = pair()
    for _ in range(40):
        step(payer, till, 1)
    assert till.take(bytes(16)) is not None
    assert till.take(b"short") is not None
    assert till.ticks == 1


def test_a_word_for_tokens_that_did_not_come_is_never_settled() -> None:
    payer, till = pair()
    words = PayWords(SEED, payer.most_ticks)
    step(payer, till, 32)
    assert till.take(words.word(1 + AHEAD + 1)) is not None
    assert till.take(words.word(3)) is None
    close = till.close()
    assert close is not None
    assert (close.ticks, close.word) == (1, words.word(1))


def test_a_lost_word_is_made_good_by_the_next() -> None:
    payer, till = pair()
    step(payer, till, 32)
    payer.tick()  # lost with a feed
    till.compute(32)
    payer.arrived(64)
    assert till.take(payer.tick()) is None
    assert till.ticks == 2


def test_a_hop_that_replaces_another_is_paid_for_the_replay_as_it_opens() -> None:
    payer, till = pair()
    for _ in range(100):
        step(payer, till, 1)
    other = Till(bytes(32), till.terms, TICK_TOKENS)
    assert other.begin(*payer.for_a_new_hop()) is None
    assert other.ticks == 3
    assert other.admit(100) is None, "the replay"
    other.compute(100)
    assert other.admit(28) is None
    assert other.admit(29) is not None


def test_a_client_that_calls_its_prompt_a_replay_must_pay_for_it() -> None:
    _, till = pair()
    assert till.begin(3, bytes(16)) is not None
    assert till.begin(21, PayWords(SEED, 21).word(21)) is not None, "beyond what was reserved"
    assert till.ticks == 0
    assert till.admit(96) is not None


def test_the_free_lane_has_no_bound_and_still_gives_receipts() -> None:
    payer = Payer(SEED, 640)
    till = Till(bytes(32), payer.open(bytes(32), b"s", 0), None)
    assert till.close() is None, "nothing was done"
    assert step(payer, till, 256)
    assert step(payer, till, 1)
    close = till.close()
    assert close is not None
    assert (close.ticks, till.terms.price) == (8, 0)


def test_all_orders_and_duplicates_of_words_never_pay_more_than_came() -> None:
    words = PayWords(SEED, 6)
    terms = Open(bytes(32), b"s", words.root, 1, TICK_TOKENS, 6, 60, 1)
    for came in range(5):
        for length in (1, 2, 3, 4):
            for order in itertools.product(range(6), repeat=length):
                till = Till(bytes(32), terms, TICK_TOKENS)
                till.compute(came * TICK_TOKENS)
                for ticks in order:
                    till.take(words.word(ticks))
                close = till.close()
                assert close is not None
                assert close.ticks <= came
                assert close.ticks >= max((ticks for ticks in order if ticks <= came), default=0), (came, order)
                assert payword.pays(close.word, words.root, close.ticks, 6)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 700))
def test_a_path_that_loses_repeats_and_swaps_messages_cheats_nobody(seed: int, tokens: int) -> None:
    draw = random.Random(seed)
    payer, till = pair(704)
    flying: list[bytes] = []
    for _ in range(tokens):
        word = payer.tick()
        flying += [word] * (draw.choice([0, 1, 1, 2]) if word else 0)
        draw.shuffle(flying)
        while flying and draw.random() < 0.7:
            assert till.take(flying.pop()) is None, "an honest client's word is never held against it"
        if till.admit(1) is not None:
            word = PayWords(SEED, payer.most_ticks).word(payer.due)  # what the client says when it is asked again
            assert till.take(word) is None
            assert till.admit(1) is None
        till.compute(1)
        payer.arrived(till.computed)
        assert till.unpaid <= TICK_TOKENS
        assert till.ticks * TICK_TOKENS <= payer.came
