import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.swarm.text.stop_strings import StopStrings


def run(stops: list[str], parts: list[str]) -> tuple[str, str | None]:
    stop = StopStrings(stops)
    out = "".join(stop.feed(part) for part in parts)
    return out + ("" if stop.matched else stop.flush()), stop.matched


def oracle(stops: list[str], text: str) -> tuple[str, str | None]:
    """Character by character: the first place where a stop string is complete, the longest one there."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


small = st.text(alphabet="ab\n", max_size=12)
stop_lists = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4)


@settings(max_examples=500, deadline=None)
@given(stop_lists, st.lists(small, max_size=8))
def test_the_result_does_not_depend_on_how_the_text_was_cut(stops: list[str], parts: list[str]) -> None:
    assert run(stops, parts) == oracle(stops, "".join(parts))


@settings(max_examples=300, deadline=None)
@given(stop_lists, st.lists(small, max_size=8))
def test_nothing_that_was_handed_out_is_ever_part_of_a_stop_string(stops: list[str], parts: list[str]) -> None:
    stop = StopStrings(stops)
    out = ""
    for part in parts:
        out += stop.feed(part)
        assert oracle(stops, "".join(parts))[0].startswith(out)


def test_text_is_held_back_only_while_it_may_begin_a_stop_string() -> None:
    stop = StopStrings(["\n\nUser:"])
    assert stop.feed("Hello\n") == "Hello"
    assert stop.feed("world") == "\nworld"
    assert stop.feed("!\n\nUs") == "!"
    assert stop.feed("er: more") == ""
    assert stop.matched == "\n\nUser:"
    assert stop.feed("anything") == ""


def test_a_stop_string_that_is_complete_first_wins_over_one_that_began_earlier() -> None:
    assert run(["abcd", "bc"], ["abcd"]) == run(["abcd", "bc"], list("abcd")) == ("a", "bc")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["x", ""])
