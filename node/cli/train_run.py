"""A training in the foreground: its event loop, its screen, its log, and the signals that pause and stop it."""

import contextlib
import logging
import os
import signal
import sys
from dataclasses import replace
from typing import Any, NoReturn

import anyio
import structlog
from anyio.abc import TaskStatus

from shoal.node.node_events import NetworkUp, NodeEvent
from shoal.node.training import events
from shoal.node.training.config import ConfigFile, run_folder
from shoal.node.training.events_screen import TrainingScreen
from shoal.node.training.limits_watch import LimitWatch
from shoal.node.training.worker_data import check_files
from shoal.node.training.worker_processes import follow_first, is_follower
from shoal.swarm.home import Home
from shoal.swarm.members.membership_file import load as load_membership

from .failures import INTERRUPTED, OK, tell
from .last_port import remember_port
from .node_choice import node_options
from .node_run import Stopper
from .output import Output
from .start_screen import StartScreen

PRIVACY = (
    "Privacy: peers that train with you get your updates, from which parts of your text can be recovered. "
    "Train on text that they may read."
)
PAUSE, RESUME = signal.SIGUSR1, signal.SIGUSR2
log = structlog.get_logger(__name__)


def start(
    home: Home,
    file: ConfigFile,
    flags: dict[str, Any],
    invite: str | None,
    output: Output,
    *,
    resume: bool,
    dry_run: bool,
) -> None:
    """Returns only by ending the process. raises: ShoalError before anything was started"""
    from shoal.node.training.worker_member import TrainingOptions
    from shoal.node.training.worker_node import TrainerOptions

    if not file.config.pipeline.cut or file.config.pipeline.stage == 0:
        check_files(file.config, file.base)
    if is_follower():
        follow_first(file, home.cache)
        return
    node = replace(
        node_options(home, {**flags, "gateway_only": True}, invite), threads=file.config.limits.threads or None
    )
    watch = LimitWatch(file.config.limits)
    options = TrainerOptions(TrainingOptions(file, run_folder(file, home.root), home.cache, resume, watch), node)
    _end(_run(options, output, dry_run=dry_run))


def _run(options: Any, output: Output, *, dry_run: bool) -> int:  # noqa: ANN401  TrainerOptions
    """The exit code; a failure was told. raises: ShoalError when the home cannot be used"""
    from .node_log import start_log

    options.node.home.prepare()
    start_log(options.node.home.logs)
    try:
        return anyio.run(_serve, options, output, dry_run, backend="asyncio", backend_options={"use_uvloop": True})
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        logging.getLogger("shoal").exception("training_failed")
        return tell(error, json=output.json)


async def _serve(options: Any, output: Output, dry_run: bool) -> int:  # noqa: ANN401
    from shoal.node.training.worker_node import plan_only, run_trainer

    home = options.node.home
    node_screen = StartScreen(output, home, "Ctrl-C stops the training; --resume goes on.", PRIVACY)
    screen = TrainingScreen(output, options.training.file.config.rounds, anyio.current_time)
    board = None if dry_run else _board(options)

    def report(event: events.TrainingEvent) -> None:
        if not isinstance(event, events.StepDone | events.Progress):
            log.info(**events.as_json(event))
        if board is not None:
            board.show(event)
        with contextlib.suppress(OSError):  # whoever read our output has gone; the training goes on
            screen.show(event)

    def tell_node(event: NodeEvent) -> None:
        if isinstance(event, NetworkUp):
            remember_port(home, event.addresses)
        with contextlib.suppress(OSError):
            node_screen.show(event)

    scope = anyio.CancelScope()
    stopper = Stopper(scope, output)
    async with anyio.create_task_group() as listening:
        await listening.start(stopper.listen)
        await listening.start(_pause_and_resume, options.training.watch)
        try:
            with scope:
                if dry_run:
                    member = options.node.invite is not None or load_membership(home.swarm) is not None
                    await plan_only(options, report, tell_node, member=member)
                else:
                    await run_trainer(options, report, tell_node, stopper.node_runs)
        finally:
            screen.close()
            node_screen.close()
            if board is not None:
                board.close()
            listening.cancel_scope.cancel()
    return stopper.exit_code


def _board(options: Any) -> Any:  # noqa: ANN401  torch is imported only where TensorBoard files are wanted
    """raises: UsageError when tensorboard is not installed"""
    if not options.training.file.config.output.tensorboard:
        return None
    from shoal.node.training.events_board import Board

    return Board(options.training.folder / "tensorboard")


async def _pause_and_resume(watch: LimitWatch, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(PAUSE, RESUME) as received:
        task_status.started()
        async for each in received:
            watch.paused = each == PAUSE


def _end(code: int) -> NoReturn:
    """Leave without waiting for a thread that still imports or loads; all that a node holds was given back before."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or OK
    os._exit(code)
