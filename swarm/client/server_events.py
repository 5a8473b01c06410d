"""Server-sent events out of bytes: only what an OpenAI-compatible stream uses, the `data` field.

source: WHATWG HTML, 9.2.6 (interpreting an event stream)
"""

import re

from shoal.swarm.errors import FrameTooLarge

MAX_EVENT_BYTES = 8 << 20
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_NEW_LINE = re.compile(rb"\r\n|\n|\r")


class ServerEvents:
    """Feed bytes as they come; each complete event's data comes back."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """raises: FrameTooLarge for an event without end"""
        *events, self._buffer = _BLANK_LINE.split(self._buffer + data)
        if len(self._buffer) > MAX_EVENT_BYTES:
            raise FrameTooLarge(f"a server-sent event is larger than {MAX_EVENT_BYTES} bytes")
        found = (self._data(event) for event in events)
        return [each for each in found if each is not None]

    @staticmethod
    def _data(event: bytes) -> bytes | None:
        lines = [line for line in _NEW_LINE.split(event) if line == b"data" or line.startswith(b"data:")]
        return b"\n".join(line[5:].removeprefix(b" ") for line in lines) if lines else None
