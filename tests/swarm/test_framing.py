import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.swarm import framing
from shoal.swarm.errors import FrameTooLarge, MalformedMessage

payloads = st.lists(st.binary(max_size=300), max_size=20)


@given(payloads, st.integers(1, 50))
def test_frames_come_out_whole_however_the_bytes_are_cut(messages: list[bytes], step: int) -> None:
    data = b"".join(map(framing.data_frame, messages)) + framing.end_frame(len(messages)) + framing.ack_frame()
    decoder = framing.FrameDecoder(1000)
    frames = [frame for at in range(0, len(data), step) for frame in decoder.feed(data[at : at + step])]
    assert [f.payload for f in frames if f.kind == framing.DATA] == messages
    assert [f.kind for f in frames[-2:]] == [framing.END, framing.ACK]


@given(st.binary(max_size=400))
def test_any_bytes_are_frames_or_raise_the_remote_error(data: bytes) -> None:
    decoder = framing.FrameDecoder(100)
    try:
        frames = list(decoder.feed(data))
    except (MalformedMessage, FrameTooLarge):
        return
    assert all(len(frame.payload) <= 100 for frame in frames)


def test_an_end_that_counts_a_lost_frame_is_refused() -> None:
    decoder = framing.FrameDecoder(100)
    with pytest.raises(MalformedMessage, match="END counts 2 frames, 1 arrived"):
        list(decoder.feed(framing.data_frame(b"one") + framing.end_frame(2)))


def test_an_oversized_frame_is_refused_by_its_header_alone() -> None:
    decoder = framing.FrameDecoder(100)
    with pytest.raises(FrameTooLarge, match="101 bytes"):
        list(decoder.feed(framing.header(framing.DATA, 101)))


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 1 << 21])
def test_a_payload_of_any_length_comes_out_as_it_was(length: int) -> None:
    payload = bytes(length)
    frame = framing.data_frame(payload)
    (found,) = framing.FrameDecoder(1 << 22).feed(frame)
    assert found.payload == payload
    assert len(frame) - length <= 5


def test_a_length_without_end_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="a length of more than 5 bytes"):
        list(framing.FrameDecoder(100).feed(b"\0" + b"\x80" * 5))
