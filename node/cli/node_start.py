"""Run a node in this process until somebody stops it, or start it in the background."""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from shoal.node.options import NodeOptions
from shoal.swarm.home import Home

from .failures import INTERRUPTED, OK, tell
from .node_choice import node_options
from .output import Output


def start(folder: Path | None, flags: dict[str, Any], invite: str | None, *, detach: bool, json: bool) -> None:
    """raises: ShoalError before anything was started"""
    home = Home.find(folder)
    options = node_options(home, flags, invite)
    output = Output(json)
    if detach:
        from .detached_start import start_detached

        start_detached(home, invite, output)
        return
    _end(_run(options, output))


def _run(options: NodeOptions, output: Output) -> int:
    """The exit code; a failure was told. raises: ShoalError when the home cannot be used"""
    from .node_log import start_log

    options.home.prepare()
    start_log(options.home.logs)
    try:
        from .node_run import run_until_stopped

        return run_until_stopped(options, output)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        logging.getLogger("shoal").exception("node_failed")
        return tell(error, json=output.json)


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
