"""Where a command's words go: data on stdout, everything else on stderr; with `--json`, events on stdout only."""

import contextlib
import sys

import msgspec

SCHEMA = 1


class Output:
    """json: stdout carries NDJSON events, and the lines for people are left out."""

    def __init__(self, json: bool) -> None:
        self.json = json

    def event(self, event: str, **data: object) -> None:
        """One JSON object per line; nothing without `--json`."""
        if self.json:
            line = msgspec.json.encode({"schema": SCHEMA, "event": event, **data})
            _to_stdout(line.decode() + "\n")

    def line(self, text: str = "") -> None:
        """Data for people and pipes."""
        if not self.json:
            self.write(text + "\n")

    def write(self, text: str) -> None:
        """A part of a line, shown at once."""
        if not self.json:
            _to_stdout(text)

    def note(self, text: str = "") -> None:
        """Beside the data: progress, advice."""
        if not self.json:
            _to_stderr(text)

    def complain(self, message: str) -> None:
        """The one line of an error, with and without `--json`."""
        _to_stderr(f"shoal: {message}")


def _to_stdout(text: str) -> None:
    """raises: BrokenPipeError when the reader has gone; OSError, as on a full disk"""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise BrokenPipeError("the reader of our output has gone") from None  # with its errno click would exit with 1


def _to_stderr(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed is no reason to fail
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
