"""An invite as a user gives it: on the command line, or on stdin so that it stands in no history."""

import sys

from shoal.swarm.errors import UsageError


def read_line(given: str) -> str:
    """raises: UsageError when there is none: an empty argument (an unset variable), or `-` with nothing on stdin"""
    if given != "-":
        if not given.strip():
            raise UsageError("the invite is empty; pass the line that begins with shoal1:")
        return given
    text = sys.stdin.read(1 << 16).strip()
    if not text:
        raise UsageError("stdin holds no invite; pass the line that begins with shoal1:")
    return text
