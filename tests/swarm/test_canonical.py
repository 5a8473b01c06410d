"""Exactly one encoding per value."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    weight: float
    words: dict[str, int] = {}


codec = Canonical(Note, "a note", 100)


def test_a_note_comes_back() -> None:
    note = Note(5, 1.5, {"b": 1, "a": 2})
    assert codec.decode(codec.encode(note)) == note


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("83a66e756d626572cc05a6776569676874cb3ff8000000000000a5776f72647380"),  # 5 in two bytes
        bytes.fromhex("83a66e756d62657205a6776569676874ca3fc00000a5776f72647380"),  # float32
        bytes.fromhex("84a66e756d62657204a66e756d62657205a6776569676874cb3ff8000000000000a5776f72647380"),  # twice
        codec.encode(Note(1, 1.0)) + b"\0",
        b"\xdf\xff\xff\xff\xff",
        b"",
    ],
    ids=["long integer", "short float", "key twice", "bytes behind", "huge map", "nothing"],
)
def test_other_encodings_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="a note"):
        codec.decode(data)


def test_too_many_bytes_are_refused_before_they_are_parsed() -> None:
    with pytest.raises(MalformedMessage, match="101 bytes are too many"):
        codec.decode(b"\x80" * 101)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_note_in_its_only_form_or_are_refused(data: bytes) -> None:
    try:
        note = codec.decode(data)
    except MalformedMessage:
        return
    assert codec.encode(note) == data
