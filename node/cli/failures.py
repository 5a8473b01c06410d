"""What a user sees when a command fails: one line on stderr, with `--json` an event too, and the exit code."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import typer

from shoal.swarm.errors import ShoalError, UsageError

from .output import Output

OK, ERROR, USAGE, INTERRUPTED = 0, 1, 2, 130
DEBUG = "SHOAL_DEBUG"
_USAGE_ERROR = typer.BadParameter.__mro__[1]  # typer exports only this heir of it


@dataclass(slots=True)
class Outcome:
    code: int = OK


@contextmanager
def told_failures(arguments: Sequence[str]) -> Iterator[Outcome]:
    """Run a command inside; whatever it raises is told to the user and becomes the outcome's code."""
    outcome = Outcome()
    try:
        yield outcome
    except typer.Abort:
        outcome.code = INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  the last resort of the command line
        outcome.code = tell(error, json="--json" in arguments)


def tell(error: Exception, *, json: bool) -> int:
    """Print the failure. returns: the exit code"""
    code, message = described(error)
    if os.environ.get(DEBUG):
        traceback.print_exception(error, file=sys.stderr)
    output = Output(json)
    with suppress(OSError):  # whoever read our output has gone, or the disk is full: the exit code still tells
        output.event("error", message=message, type=kind_of(error), exit_code=code)
    output.complain(message)
    return code


def described(error: BaseException) -> tuple[int, str]:
    """The exit code and the line."""
    match error:
        case ShoalError():
            return error.exit_code, one_line(str(error)) or type(error).__name__
        case MemoryError():
            return 6, "there is not enough memory; try --max-memory or fewer --layers"
        case BaseExceptionGroup():
            return described(cause_of(error))
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return 6, one_line(f"the disk is full: {error.filename or 'the output cannot be written'}")
        case Exception() if isinstance(error, _USAGE_ERROR):
            hint = "" if _context_of(error) is None else f"; `{_context_of(error)} --help` shows how"
            return USAGE, one_line(error.format_message()).rstrip(".") + hint  # type: ignore[attr-defined]
        case _:
            what = one_line(f"{type(error).__name__}: {error}")
            return ERROR, f"this is a bug of shoal ({what}); `shoal --debug COMMAND` shows where, and please report it"


def cause_of(error: BaseException) -> BaseException:
    """What went wrong first, inside the groups that task groups make of it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def kind_of(error: BaseException) -> str:
    """The error's name for programs; every misuse of the command line is a UsageError, whatever click calls it."""
    cause = cause_of(error)
    return UsageError.__name__ if isinstance(cause, _USAGE_ERROR) else type(cause).__name__


def one_line(text: str) -> str:
    return " ".join(text.split())


def _context_of(error: Exception) -> str | None:
    """`shoal up`: the command that was misused."""
    context = getattr(error, "ctx", None)
    return None if context is None else str(context.command_path)
