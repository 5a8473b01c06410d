"""A node in the foreground: its event loop, its start screen, and the signals that stop it."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio
import msgspec
import structlog
from anyio.abc import TaskStatus

from shoal.node.node_events import Identified, Leaving, LoadProgress, NetworkUp, NodeEvent
from shoal.node.options import NodeOptions
from shoal.swarm.errors import Refused

from .failures import INTERRUPTED, OK
from .last_name import remember_name
from .last_port import remember_port
from .output import Output
from .start_screen import StartScreen, event_name

if TYPE_CHECKING:
    from shoal.node.node import Node

PATIENCE = 3  # signals: the first asks, the second does not wait for running answers, the third ends at once
WANTED = ("asked to stop", "shoal down")
log = structlog.get_logger(__name__)


class Stopper:
    """Turns signals into a stop of whatever stage the node is in."""

    def __init__(self, scope: anyio.CancelScope, output: Output) -> None:
        self.signals: list[signal.Signals] = []
        self._scope = scope
        self._output = output
        self._node: Node | None = None

    def node_runs(self, node: "Node") -> None:
        self._node = node
        if self.signals:
            node.ask_to_stop(self.signals[0].name)

    async def listen(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*_stopping_signals()) as received:
            task_status.started()
            await self._take(received)

    async def _take(self, received: AsyncIterator[signal.Signals]) -> None:
        async for each in received:
            self.signals.append(each)
            log.info("signal", name=each.name, count=len(self.signals))
            if len(self.signals) == 1 and self._node is not None:
                self._node.ask_to_stop(each.name)
            else:
                self._scope.cancel()
            if len(self.signals) == PATIENCE:
                os._exit(INTERRUPTED)  # the daemon's guard sees our end and clears up
            if len(self.signals) > 1:
                self._output.note("stopping already; once more ends at once")

    def check(self, reason: str) -> None:
        """raises: Refused when the swarm, and not the user, made the node stop"""
        if not self.signals and reason not in WANTED:
            raise Refused(f"the node has stopped: {reason}")

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.signals and self.signals[0] == signal.SIGINT else OK


def _stopping_signals() -> tuple[signal.Signals, ...]:
    """A closed terminal stops the node too, unless nohup says that it shall not."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def run_until_stopped(options: NodeOptions, output: Output) -> int:
    """returns: the exit code. raises: ShoalError"""
    return anyio.run(_serve, options, output, backend="asyncio", backend_options={"use_uvloop": True})


async def _serve(options: NodeOptions, output: Output) -> int:
    from shoal.node.node import run_node  # brings the swarm's half, not torch

    screen = StartScreen(output, options.home)

    reason = WANTED[0]

    def report(event: NodeEvent) -> None:
        nonlocal reason
        if isinstance(event, Leaving):
            reason = event.reason
        if not isinstance(event, LoadProgress):
            facts = {name: fact for name, fact in msgspec.to_builtins(event).items() if name != "invite"}
            log.info(event_name(type(event)), **facts)
        if isinstance(event, Identified):
            remember_name(options.home, event.name)
        if isinstance(event, NetworkUp):
            remember_port(options.home, event.addresses)
        with contextlib.suppress(OSError):  # whoever read our output has gone; the node serves on
            screen.show(event)

    scope = anyio.CancelScope()
    stopper = Stopper(scope, output)
    async with anyio.create_task_group() as listening:
        await listening.start(stopper.listen)
        try:
            with scope:
                await run_node(options, report, stopper.node_runs)
        finally:
            screen.close()
            listening.cancel_scope.cancel()
    stopper.check(reason)
    return stopper.exit_code
