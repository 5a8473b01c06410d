"""`shoal status --watch`: the same text again and again, with tokens per second."""

import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .node_api import NodeApi
from .output import Output
from .status_view import status_lines


class TokenMeter:
    """Tokens per second of each hosted model, from its counter at two moments."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float]] = {}

    def rates(self, hosted: Sequence[Mapping[str, Any]], now_s: float) -> dict[str, float]:
        """now_s: of any steady clock; a model that was not seen before has no rate yet"""
        rates = {}
        for item in hosted:
            model, tokens = item["model"], item["tokens"]
            if model in self._last:
                before, at_s = self._last[model]
                rates[model] = max(0, tokens - before) / max(now_s - at_s, 1e-6)
            self._last[model] = (tokens, now_s)
        return rates


def watch_status(node: NodeApi, output: Output, interval_s: float) -> None:
    """Until q or Ctrl-C. raises: SwarmUnreachable when the node goes away"""
    meter = TokenMeter()
    with _key_presses() as pressed, _canvas(output) as show:
        while True:
            facts = node.get("/status")
            rates = meter.rates(facts["hosted"], time.perf_counter())
            output.event("status", **facts, tokens_per_s=rates)
            show("\n".join(status_lines(facts, rates)))
            if pressed(interval_s) == "q":
                return


@contextmanager
def _canvas(output: Output) -> Iterator[Callable[[str], None]]:
    """Draws in place on a terminal, one text after the other into a pipe, nothing with --json."""
    if output.json or not sys.stdout.isatty():
        yield lambda text: output.line(text + "\n")
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        hint = "\n\nq ends" if sys.stdin.isatty() else "\n\nCtrl-C ends"
        yield lambda text: live.update(Text(text + hint, overflow="ellipsis", no_wrap=True), refresh=True)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextmanager
def _key_presses() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key, at most so many seconds; "" when none came. Without a terminal it only waits."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios
    import tty

    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)

    def wait(seconds: float) -> str:
        ready, _, _ = select.select([handle], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    tty.setcbreak(handle)
    try:
        yield wait
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
