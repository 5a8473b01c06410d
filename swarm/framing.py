"""Frames on a byte stream, with an END that says how many there were and an ACK that says they arrived.

p2pd can lose the tail of a stream without an error, so a plain end of file proves nothing: a stream is complete only
when END came with the right count, and its writer knows that only when ACK came back. Sans-io: bytes in, frames out.

Layout, little endian: kind u8, length u32, payload. DATA carries a message; END carries the number of DATA frames
before it (u64); ACK is empty.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .errors import FrameTooLarge, MalformedMessage

HEADER = struct.Struct("<BI")
COUNT = struct.Struct("<Q")
DATA: Literal[0] = 0
END: Literal[1] = 1
ACK: Literal[2] = 2


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Literal[0, 1, 2]
    payload: bytes


def data_frame(payload: bytes) -> bytes:
    return HEADER.pack(DATA, len(payload)) + payload


def end_frame(sent: int) -> bytes:
    return HEADER.pack(END, COUNT.size) + COUNT.pack(sent)


def ack_frame() -> bytes:
    return HEADER.pack(ACK, 0)


class FrameDecoder:
    """Cut a byte stream into frames.

    raises from `feed`: FrameTooLarge before the payload is buffered; MalformedMessage for an unknown kind, a control
    frame of the wrong size, or an END that counts other than what came
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self._max = max_frame_bytes
        self._buffer = bytearray()
        self._received = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        buffer = self._buffer
        buffer += data
        at, size = 0, len(buffer)
        try:
            while size - at >= HEADER.size:
                kind, length = HEADER.unpack_from(buffer, at)
                self._check_header(kind, length)
                stop = at + HEADER.size + length
                if stop > size:
                    break
                payload = bytes(memoryview(buffer)[at + HEADER.size : stop])
                at = stop
                yield self._frame(kind, payload)
        finally:
            del buffer[:at]

    def _check_header(self, kind: int, length: int) -> None:
        if kind == DATA:
            if length > self._max:
                raise FrameTooLarge(f"a frame of {length} bytes was announced; the limit is {self._max}")
        elif kind == END:
            if length != COUNT.size:
                raise MalformedMessage(f"an END of {length} bytes")
        elif kind != ACK or length:
            raise MalformedMessage(f"a frame of unknown kind {kind}")

    def _frame(self, kind: int, payload: bytes) -> Frame:
        if kind == DATA:
            self._received += 1
            return Frame(DATA, payload)
        if kind == END:
            (sent,) = COUNT.unpack(payload)
            if sent != self._received:
                raise MalformedMessage(f"END counts {sent} frames, {self._received} arrived")
            return Frame(END, payload)
        return Frame(ACK, payload)
