"""Frames on a byte stream, with an END that says how many there were and an ACK that says they arrived.

p2pd can lose the tail of a stream without an error, so a plain end of file proves nothing: a stream is complete only
when END came with the right count, and its writer knows that only when ACK came back. Sans-io: bytes in, frames out.

Layout: kind u8, length (seven bits a byte, lowest first, the high bit set on all but the last), payload. DATA carries a
message; END carries the number of DATA frames before it (u64, little endian); ACK is empty.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .errors import FrameTooLarge, MalformedMessage

COUNT = struct.Struct("<Q")
DATA: Literal[0] = 0
END: Literal[1] = 1
ACK: Literal[2] = 2
_MOST_LENGTH_BYTES = 5


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Literal[0, 1, 2]
    payload: bytes


def data_frame(payload: bytes) -> bytes:
    return header(DATA, len(payload)) + payload


def end_frame(sent: int) -> bytes:
    return header(END, COUNT.size) + COUNT.pack(sent)


def ack_frame() -> bytes:
    return header(ACK, 0)


def header(kind: int, length: int) -> bytes:
    head = bytearray((kind,))
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)


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
            while (head := self._header(at)) is not None:
                kind, length, begin = head
                self._check_header(kind, length)
                stop = begin + length
                if stop > size:
                    break
                payload = bytes(memoryview(buffer)[begin:stop])
                at = stop
                yield self._frame(kind, payload)
        finally:
            del buffer[:at]

    def _header(self, at: int) -> tuple[int, int, int] | None:
        """Kind, length and where the payload begins; None when the header is not there whole."""
        buffer, length = self._buffer, 0
        for number in range(_MOST_LENGTH_BYTES):
            index = at + 1 + number
            if index >= len(buffer):
                return None
            byte = buffer[index]
            length |= (byte & 0x7F) << 7 * number
            if byte < 0x80:
                return buffer[at], length, index + 1
        raise MalformedMessage(f"a length of more than {_MOST_LENGTH_BYTES} bytes")

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
