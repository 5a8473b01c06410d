"""A training in the node that runs in this home already: this process only shows it, and ends it when it ends."""

import http.client
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from shoal.node.training.config import ConfigFile
from shoal.node.training.events import read_event
from shoal.node.training.events_screen import TrainingScreen
from shoal.swarm.errors import ShoalError, SwarmUnreachable

from .failures import INTERRUPTED, OK
from .node_api import PREFIX, NodeApi, failure_of
from .output import Output

CONNECT_S = 10.0


class TrainingFailed(ShoalError):
    """What the node said of its training, with the exit code that it named."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def train_here(node: NodeApi, config: Path, file: ConfigFile, output: Output, *, resume: bool) -> int:
    """returns: the exit code. raises: ShoalError"""
    for each in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) != signal.SIG_IGN:
            signal.signal(each, signal.default_int_handler)
    output.note(f"training in node {node.facts.name} (pid {node.facts.pid}), which runs here; Ctrl-C ends it")
    screen = TrainingScreen(output, file.config.rounds, time.perf_counter)
    try:
        for event in _events(node, {"config": str(config.absolute()), "resume": resume}):
            if event.get("event") == "error":
                raise TrainingFailed(str(event["message"]), int(event["exit_code"]))
            known = read_event(event)
            if known is not None:
                screen.show(known)
    except KeyboardInterrupt:
        output.note("stopping; the node saves what whole rounds have brought")
        return INTERRUPTED
    finally:
        screen.close()
    return OK


def _events(node: NodeApi, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    address = urlsplit(node.facts.api)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=CONNECT_S)
    headers = {"authorization": f"Bearer {node.home.api_key()}", "content-type": "application/json"}
    try:
        connection.request("POST", f"{PREFIX}/training", msgspec.json.encode(wanted), headers)
        if connection.sock is not None:
            connection.sock.settimeout(None)  # a round may take its time
        answer = connection.getresponse()
        if answer.status != 200:
            raise failure_of(answer.status, answer.read(), node.home)
        while line := answer.readline():
            yield msgspec.json.decode(line)
    except (OSError, http.client.HTTPException) as error:
        raise SwarmUnreachable(f"node {node.facts.name} has ended ({error}); see {node.home.logs}/node.log") from error
    finally:
        connection.close()
