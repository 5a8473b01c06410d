"""The command `shoal`: runs one command and turns whatever happens into an exit code and one line.

Nothing is imported at the top, so that Ctrl-C is quiet from the first moment on.
"""

import sys
from collections.abc import Sequence

INTERRUPTED = 130
STARTS_A_NODE = ("up", "join")
COMPUTES_MEANWHILE = (*STARTS_A_NODE, "train")


def run() -> None:
    """The console script."""
    try:
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        if command in STARTS_A_NODE:
            _stop_in_order()
        if command in COMPUTES_MEANWHILE:
            _keep_numpy_to_one_thread()
        _hear_signals()
        _mend_streams()
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


def _keep_numpy_to_one_thread() -> None:
    """Before it is imported. Codecs run beside torch: threads of numpy's own wait for each other on cores that compute,
    and a chunk of a KV cache took four times as long to decode, some of them half a second."""
    import os

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _hear_signals() -> None:
    """Whoever started us may have held them back until we were known to it."""
    import signal

    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


def _mend_streams() -> None:
    """A closed stdout takes words and loses them; an encoding without our bars shows question marks instead."""
    import io
    import os
    from pathlib import Path

    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `shoal status >&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  it lives as long as we
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _stop_in_order() -> None:
    """SIGTERM and a closed terminal end a node well from the first moment on: nothing is held before it listens."""
    import os
    import signal

    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, lambda *_: os._exit(0))


def _reader_gone() -> int:
    """`shoal generate ... | head -1`: the reader has had enough, which is nobody's fault."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
