"""What one hop signed as its output, and the next as its input: a false byte stands out, an honest link holds."""

import msgspec
import pytest
from incentives.work_samples import hidden, session, signed

from shoal.incentives import work_links
from shoal.incentives.work_chunks import Chunk, Given
from shoal.incentives.work_links import DISTRUST, is_distrusted, took


def behind(chunks: list[Chunk]) -> list[Chunk]:
    """The chunks of a hop that got what these gave."""
    return [
        msgspec.structs.replace(
            each,
            given=Given((), each.made.hidden),
            made=msgspec.structs.replace(each.made, hidden=hidden(each.count, 9 + n)),
        )
        for n, each in enumerate(chunks)
    ]


@pytest.mark.parametrize("index", [0, 1, 3])
def test_an_honest_link_holds_and_one_flipped_byte_anywhere_in_the_chunk_breaks_it(index: int) -> None:
    front = session(100)
    back = behind(front)
    statement, leaves = signed(back)
    link = work_links.of_chunk(leaves, back[index].count, index)
    made = front[index].made.hidden
    assert took(statement, link, index, made)
    for at in range(0, len(made), 7):
        flipped = bytearray(made)
        flipped[at] ^= 1
        assert not took(statement, link, index, bytes(flipped)), at


def test_a_link_cannot_be_made_up_for_other_bytes_or_another_place() -> None:
    front = session(100)
    back = behind(front)
    statement, leaves = signed(back)
    link = work_links.of_chunk(leaves, back[1].count, 1)
    made = front[1].made.hidden
    for change in ({"before": bytes(32)}, {"sent": bytes(32)}, {"count": 31}, {"path": link.path[:-1]}):
        assert not took(statement, msgspec.structs.replace(link, **change), 1, made)
    assert not took(statement, link, 2, made)
    assert len(work_links.links.encode(link)) < 500


def test_a_liar_has_false_links_with_all_its_neighbours_and_an_honest_server_only_with_liars() -> None:
    assert is_distrusted({bytes([n]): True for n in range(DISTRUST)})
    assert not is_distrusted({bytes([n]): n < 3 for n in range(6)})
    assert not is_distrusted({b"a": True, b"b": True})
