"""The command `shoal`: runs one command and turns whatever happens into an exit code and one line.

Nothing is imported at the top, so that Ctrl-C is quiet from the first moment on.
"""

import sys
from collections.abc import Sequence

INTERRUPTED = 130


def run() -> None:
    """The console script."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = _reader_gone()
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """returns: the exit code; errors were printed"""
    from .failures import told_failures

    with told_failures(arguments) as outcome:
        from .commands import command_line

        result = command_line().main(list(arguments), prog_name="shoal", standalone_mode=False)
        if isinstance(result, int):  # of typer.Exit
            outcome.code = result
    return outcome.code


def _reader_gone() -> int:
    """`shoal generate ... | head -1`: the reader has had enough, which is nobody's fault."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
