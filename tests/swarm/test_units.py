import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm.units import Span, check_syntax, describe, missing, parse, whole

LAYERS = 8


@st.composite
def spans(draw: st.DrawFn) -> Span:
    start = draw(st.integers(0, LAYERS + 1))
    return Span(start, draw(st.integers(start + 1, LAYERS + 2)))


@given(spans())
def test_what_describe_writes_parse_reads(span: Span) -> None:
    assert parse(describe(span, LAYERS), LAYERS) == span


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4:12", "out of range"),
        ("5:5", "are none"),
        ("embed+2:4", "gap"),
        ("2:4+head", "gap"),
        ("embed+head", "gap"),
        ("", "cannot read"),
        ("layers", "cannot read"),
        ("-1:3", "cannot read"),
    ],
)
def test_layers_that_cannot_be_are_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text, LAYERS)


@pytest.mark.parametrize("text", ["foo", "", "5:3", "5:5", "embed+2:4", "0:4+"])
def test_layers_of_no_model_at_all_are_found_without_a_model(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read|are none|gap"):
        check_syntax(text)


@given(spans())
def test_layers_of_some_model_pass_the_check_of_their_syntax(span: Span) -> None:
    for text in (describe(span, LAYERS), "all"):
        check_syntax(text)


@given(st.lists(spans(), max_size=5))
def test_missing_names_exactly_the_units_that_nobody_holds(held: list[Span]) -> None:
    everything = set(range(LAYERS + 2))
    covered = {unit for span in held for unit in range(span.start, span.stop)}
    gaps = {unit for span in missing(whole(LAYERS), held) for unit in range(span.start, span.stop)}
    assert gaps == everything - covered
