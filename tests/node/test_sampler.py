"""The next token: a pure function of logits, sampling and position, with transformers' and OpenAI's meanings."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.sampler import Draw, choose, uniform
from shoal.swarm.errors import LocalFault
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Choice

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5])


def one(sampling: Sampling, position: int = 0, history: tuple[int, ...] = (), logits: torch.Tensor = LOGITS) -> Choice:
    return choose(logits[None], [Draw(sampling, position, history)])[0]


def drawn(sampling: Sampling, count: int = 4000, logits: torch.Tensor = LOGITS) -> Counter[int]:
    return Counter(one(sampling, position, (), logits).id for position in range(count))


def test_temperature_zero_takes_the_likeliest() -> None:
    assert one(Sampling()) == Choice(1, 0.0)


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    counts, expected = drawn(Sampling(temperature=0.7, seed=5)), torch.softmax(LOGITS / 0.7, -1).tolist()
    for token, share in enumerate(expected):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


def test_draws_follow_the_softmax_of_a_large_vocabulary() -> None:
    logits = torch.linspace(0.0, 2.0, 5000)  # flat: most draws fall beyond the likeliest thousand
    counts = drawn(Sampling(temperature=1.0, seed=1), 3000, logits)
    upper = float(torch.softmax(logits, -1)[2500:].sum())
    assert sum(n for token, n in counts.items() if token >= 2500) / 3000 == pytest.approx(upper, abs=0.04)


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(1, 6))
def test_a_draw_does_not_depend_on_who_shares_the_batch(seed: int, position: int, others: int) -> None:
    sampling = Sampling(temperature=1.3, seed=seed)
    noise = torch.randn(others, 5, generator=torch.Generator().manual_seed(seed % 1000))
    batch = torch.cat((noise, LOGITS[None], noise))
    draws = [Draw(Sampling(temperature=2.0, seed=n), n) for n in range(others)]
    together = choose(batch, [*draws, Draw(sampling, position), *draws])
    assert together[others] == one(sampling, position)


def test_the_number_of_a_position_is_fixed_for_ever() -> None:
    assert [uniform(0, 0), uniform(0, 1), uniform(42, 7)] == [
        pytest.approx(number, abs=1e-15) for number in (0.0564663990004608, 0.44008326622012284, 0.8614033402518924)
    ]


def test_top_k_leaves_the_k_likeliest() -> None:
    assert set(drawn(Sampling(temperature=5.0, top_k=2))) == {1, 4}


def test_top_p_leaves_the_fewest_that_reach_the_share() -> None:
    shares = torch.softmax(LOGITS, -1)
    enough = float(shares[1] + shares[4]) - 0.01
    assert set(drawn(Sampling(temperature=1.0, top_p=enough))) == {1, 4}
    assert set(drawn(Sampling(temperature=1.0, top_p=0.01))) == {1}


def test_min_p_leaves_what_has_that_share_of_the_likeliest() -> None:
    threshold = math.exp(2.5 - 3.0) - 0.01
    assert set(drawn(Sampling(temperature=1.0, min_p=threshold))) == {1, 4}


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, -1.1])
    assert one(Sampling(repetition_penalty=1.2), 0, (0,), logits).id == 1
    both = torch.tensor([-1.0, -1.1])
    assert one(Sampling(repetition_penalty=1.2), 0, (0,), both).id == 1


def test_frequency_penalty_counts_and_presence_penalty_does_not() -> None:
    logits = torch.tensor([3.0, 2.0, 0.0])
    assert one(Sampling(presence_penalty=0.9), 0, (0, 0, 0), logits).id == 0
    assert one(Sampling(frequency_penalty=0.4), 0, (0, 0, 0), logits).id == 1


def test_logprobs_are_of_the_raw_softmax_whatever_is_filtered() -> None:
    choice = one(Sampling(temperature=0.5, top_k=1, presence_penalty=2.0, top_logprobs=3), 0, (1,))
    expected = torch.log_softmax(LOGITS.double(), -1).tolist()
    assert choice.id == 4
    assert choice.logprob == pytest.approx(expected[4])
    assert [token for token, _ in choice.top] == [1, 4, 2]
    assert [value for _, value in choice.top] == pytest.approx([expected[1], expected[4], expected[2]])


def test_equal_logits_are_ordered_by_id() -> None:
    choice = one(Sampling(top_logprobs=4), 0, (), torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]))
    assert [token for token, _ in choice.top] == [1, 2, 3, 0]
    assert choice.id == 1


def test_nan_and_infinity_are_our_own_fault() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(LocalFault, match="NaN or infinity"):
            choose(torch.tensor([[0.0, bad, 1.0]]), [Draw(Sampling(), 0)])


@given(st.floats(0.05, 5.0), st.integers(0, 5), st.floats(0.05, 1.0), st.floats(0.0, 1.0), st.integers(0, 1000))
def test_whatever_the_filters_a_token_of_the_vocabulary_comes_out(
    temperature: float, top_k: int, top_p: float, min_p: float, position: int
) -> None:
    choice = one(Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p), position)
    assert 0 <= choice.id < 5


def test_a_larger_number_never_gives_a_likelier_token() -> None:
    sampling = Sampling(temperature=1.0, seed=9)
    by_number = sorted((uniform(9, position), one(sampling, position).id) for position in range(300))
    likelihoods = [float(LOGITS[token]) for _, token in by_number]
    assert all(first >= second for first, second in pairwise(likelihoods))
