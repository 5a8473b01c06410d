"""Turn after turn of a conversation, from a terminal or a pipe."""

import contextlib
import sys
from collections.abc import Iterator

from shoal import ContextTooLong, Result, ShoalError

from .answer_stream import Answers
from .output import Output
from .terminal_text import is_text

HELP = """/route   the way that the last answer took
/clear   forget the conversation
/system TEXT   tell the model something first, and begin anew
/history the conversation so far
/quit    end (also /exit, /bye, Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one."""
NOT_TEXT = "that line is not valid UTF-8; it was left out"
_END = ("/quit", "/exit", "/bye")


class ChatLoop:
    """A turn whose answer failed or was stopped is not part of the conversation."""

    def __init__(self, answers: Answers, output: Output, system: str | None, *, always_route: bool) -> None:
        self._answers = answers
        self._output = output
        self._always_route = always_route
        self._last: Result | None = None
        self._interactive = sys.stdin.isatty()
        self._begin(system)

    def _begin(self, system: str | None) -> None:
        self._messages = [{"role": "system", "content": system}] if system else []

    def run(self) -> None:
        """raises: ShoalError, at a terminal only what ends the conversation for good"""
        if self._interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  gives input() line editing and the arrow keys
            self._output.note("Type a message; /help lists the commands.")
        for line in self._lines():
            if line in _END:
                return
            if line.startswith("/"):
                self._obey(line)
            else:
                self._turn(line)

    def _lines(self) -> Iterator[str]:
        """Messages without surrounding white space, none of them empty."""
        parts: list[str] = []
        while True:
            try:
                line = input(("... " if parts else ">>> ") if self._interactive else "")
            except EOFError:
                line, ended = "", True
            except UnicodeDecodeError:
                self._output.note(NOT_TEXT)
                continue
            else:
                ended = False
            if not is_text(line):
                self._output.note(NOT_TEXT)
                continue
            if line.endswith("\\") and not ended:
                parts.append(line[:-1])
                continue
            text = "\n".join([*parts, line]).strip()
            parts = []
            if text:
                yield text
            if ended:
                return

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        match command:
            case "/route" if self._last is not None:
                self._answers.note_route(self._last)
            case "/route":
                self._output.note("no answer yet")
            case "/clear":
                self._begin(None)
            case "/system":
                self._begin(rest.strip() or None)
            case "/history":
                for message in self._messages:
                    self._output.note(f"{message['role']}: {message['content']}")
            case "/help":
                self._output.note(HELP)
            case _:
                self._output.note(f"there is no command {command}; /help lists them")

    def _turn(self, text: str) -> None:
        asked = [*self._messages, {"role": "user", "content": text}]
        try:
            self._last = self._answers.show(asked)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            self._output.note("\nstopped; the turn is forgotten")
            return
        except ShoalError as error:
            if not self._interactive:
                raise
            advice = "; /clear begins anew" if isinstance(error, ContextTooLong) else ""
            self._output.complain(f"{error}{advice}")
            return
        self._messages = [*asked, {"role": "assistant", "content": self._last.text}]
        if self._always_route:
            self._answers.note_route(self._last)
