"""The gateway behind a real uvicorn server on loopback, in a thread of its own."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Event, Thread

import uvicorn

from shoal.node.api.app import create_app
from shoal.node.api.control import NodeControl
from shoal.swarm.text.scripted_source import ScriptedModel, ScriptedSource

KEY = "a-key-for-tests-only"
PATIENCE_S = 20.0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def live_gateway(source: ScriptedSource, control: NodeControl | None = None) -> Iterator[str]:
    """Yields the address, http://127.0.0.1:PORT."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(source, KEY, control=control)
    server = _Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=2))
    thread = Thread(target=server.run, kwargs={"sockets": [listening]}, name="test-gateway")
    thread.start()
    try:
        assert server.ready.wait(PATIENCE_S)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listening.close()
        assert not thread.is_alive()


class WatchedSource(ScriptedSource):
    """A scripted source whose sessions another thread can wait for."""

    def __init__(self, models: Sequence[ScriptedModel], step_s: float = 0.0) -> None:
        super().__init__(models, step_s)
        self._changed = Condition()

    def session_changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came true within PATIENCE_S."""
        with self._changed:
            return self._changed.wait_for(condition, PATIENCE_S)
