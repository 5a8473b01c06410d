from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.swarm.client.server_events import MAX_EVENT_BYTES, ServerEvents
from shoal.swarm.errors import FrameTooLarge

STREAM = b": hello\n\ndata: one\n\nevent: x\r\ndata: two\r\ndata:three\r\n\r\nid: 9\n\ndata\n\ndata: rest"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_events_do_not_depend_on_how_the_bytes_were_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    events = ServerEvents()
    found = [data for at, to in pairwise(edges) for data in events.feed(STREAM[at:to])]
    assert found == [b"one", b"two\nthree", b""]


def test_an_event_without_end_is_refused() -> None:
    events = ServerEvents()
    events.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(FrameTooLarge):
        events.feed(b"x")
