"""The HTTP API on a socket of its own, inside the node's event loop."""

import errno
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

import anyio
import uvicorn
from anyio.abc import TaskGroup

from shoal.swarm.errors import UsageError
from shoal.swarm.sessions.generation import TokenSource

from .api.app import create_app
from .api.control import NodeControl
from .api.gateway_metrics import GatewayMetrics
from .api.kv import KvHost
from .api.publishing import Publisher
from .api.training import TrainingHost
from .api.weights import WeightsHost

DEFAULT_PORT = 8411
STOP_S = 3.0  # running answers may take this long after the node was told to stop


class _QuietServer(uvicorn.Server):
    """Signals belong to the node, not to one of its parts."""

    def install_signal_handlers(self) -> None:
        return

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket. port: None takes the default one or, when that is taken, any free one.

    raises: UsageError
    """
    for candidate in (port,) if port is not None else (DEFAULT_PORT, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise UsageError(f"cannot listen on {host}: {error.strerror}; check --api-host") from error
            continue
        listener.listen(128)
        listener.setblocking(False)
        return listener
    raise UsageError(f"port {port} is in use; choose another with --api-port, or stop the other program")


class ApiServer:
    def __init__(
        self,
        source: TokenSource,
        control: NodeControl,
        key: str,
        host: str,
        port: int | None,
        publisher: Publisher | None = None,
        trainings: TrainingHost | None = None,
        weights: WeightsHost | None = None,
        kv: KvHost | None = None,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        self._app = create_app(
            source,
            key,
            control=control,
            metrics=metrics,
            publisher=publisher,
            trainings=trainings,
            weights=weights,
            kv=kv,
        )
        self._listener = bind(host, port)

    @asynccontextmanager
    async def running(self, tasks: TaskGroup) -> AsyncIterator[str]:
        """Serve until the context is left. returns: the base address, http://127.0.0.1:8411"""
        host, port = self._listener.getsockname()[:2]
        config = uvicorn.Config(
            self._app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=int(STOP_S)
        )
        server = _QuietServer(config)
        stopped = anyio.Event()

        async def serve() -> None:
            try:
                await server.serve(sockets=[self._listener])
            finally:
                stopped.set()

        tasks.start_soon(serve)
        try:
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            with anyio.move_on_after(STOP_S + 2, shield=True):
                await stopped.wait()
            self._listener.close()
