"""What is signed for of the way in which tokens are drawn."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.incentives.work_statement import WorkStatement
from shoal.swarm.sampling import Sampling, decoded, encoded

ZERO_TO_ONE = st.floats(0.0, 1.0, exclude_min=True)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0.0, 100.0),
    top_k=st.integers(0, 1 << 24),
    top_p=ZERO_TO_ONE,
    min_p=ZERO_TO_ONE,
    repetition_penalty=st.floats(0.01, 100.0),
    presence_penalty=st.floats(-2.0, 2.0),
    frequency_penalty=st.floats(-2.0, 2.0),
    seed=st.integers(0, (1 << 63) - 1),
    top_logprobs=st.integers(-1, 20),
)


@given(samplings)
def test_any_sampling_fits_a_statement_and_comes_back(sampling: Sampling) -> None:
    (field,) = (f for f in msgspec.structs.fields(WorkStatement) if f.name == "sampling")
    assert len(msgspec.convert(encoded(sampling), field.type)) <= 80
    assert decoded(encoded(sampling)) == sampling


@given(samplings)
def test_driver_and_server_sign_for_the_same_bytes(sampling: Sampling) -> None:
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=Sampling)
    assert encoded(arrived) == encoded(sampling)


def test_whole_numbers_and_left_out_values_are_signed_for_alike() -> None:
    assert encoded(Sampling(temperature=1, top_p=1)) == encoded(Sampling(temperature=1.0))


@pytest.mark.parametrize("data", [b"", b"x", b"\x80", encoded(Sampling())[:-1], encoded(Sampling(temperature=-1.0))])
def test_other_bytes_are_no_sampling(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  msgspec's, or ours
        decoded(data)
