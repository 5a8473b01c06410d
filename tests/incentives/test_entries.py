"""One encoding an entry; nothing else parses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from incentives.entry_samples import WRITER, entries

from shoal.incentives import bodies, entry
from shoal.incentives.entry import Entry
from shoal.swarm.errors import MalformedMessage


@given(entries())
def test_every_entry_comes_back_from_its_bytes(written: Entry) -> None:
    assert entry.decode(entry.encode(written)) == written


@given(entries(), st.data())
def test_a_changed_byte_makes_it_unreadable_or_another_entry_that_nobody_signed(
    written: Entry, data: st.DataObject
) -> None:
    raw = bytearray(entry.encode(written))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        other = entry.decode(bytes(raw))
    except MalformedMessage:
        return
    assert other != written
    assert not entry.is_signed(other)


@given(st.binary(max_size=400))
def test_any_bytes_are_an_entry_in_its_only_form_or_are_refused(data: bytes) -> None:
    try:
        read = entry.decode(data)
    except MalformedMessage:
        return
    assert entry.encode(read) == data


def test_longer_integers_and_fields_too_many_are_refused() -> None:
    raw = entry.encode(entry.write(WRITER, 5, bytes(32), 7, bodies.Ack(bytes(32), 0)))
    at = 1 + 34
    assert raw[at] == 5
    for other in (raw[:at] + b"\xcc\x05" + raw[at + 1 :], raw + b"\0", b"\x97" + raw[1:] + b"\0"):
        with pytest.raises(MalformedMessage):
            entry.decode(other)
