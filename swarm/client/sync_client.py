"""`shoal.connect()`: the same client without async; its event loop lives in one thread until `close`."""

import atexit
from contextlib import ExitStack
from types import TracebackType
from typing import Self, Unpack

from anyio.from_thread import BlockingPortal, start_blocking_portal

from shoal.swarm.errors import UsageError
from shoal.swarm.sessions.generation import ServedModel
from shoal.swarm.text.pieces import Piece

from .async_client import AsyncClient, AsyncStream, OpenBackend
from .generation_options import GenerationOptions, Prompt
from .results import Result


class Stream:
    """Iterate for the pieces, then read `result`. Leaving `with`, or `close`, cancels what still runs."""

    def __init__(self, client: "Client", stream: AsyncStream) -> None:
        self._client = client
        self._stream = stream

    @property
    def result(self) -> Result:
        """raises: UsageError before the end"""
        return self._stream.result

    def close(self) -> None:
        if not self._client.closed:
            self._client.portal.call(self._stream.aclose)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        piece = self._client.portal.call(self._stream.next_piece)
        if piece is None:
            raise StopIteration
        return piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client:
    """Open from the start; use as `with shoal.connect() as client`, or call `close` at the end."""

    def __init__(self, open_backend: OpenBackend, model: str | None = None) -> None:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal(name="shoal-client"))
            client = AsyncClient(open_backend, model)
            self._client = stack.enter_context(self._portal.wrap_async_context_manager(client))
            self._stack: ExitStack | None = stack.pop_all()
        atexit.register(self.close)

    @property
    def closed(self) -> bool:
        return self._stack is None

    @property
    def portal(self) -> BlockingPortal:
        """raises: UsageError when the client is closed"""
        if self.closed:
            raise UsageError("the client is closed")
        return self._portal

    def close(self) -> None:
        """Cancel running streams, stop the thread; harmless when repeated."""
        stack, self._stack = self._stack, None
        if stack is not None:
            atexit.unregister(self.close)
            stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def models(self) -> list[ServedModel]:
        """What the swarm knows, servable or not."""
        return self.portal.call(self._client.models)

    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Stream:
        """Pieces as they come. raises: UsageError, TypeError for an unknown option; the rest while reading"""
        return Stream(self, self._client.stream(prompt, **options))

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Result:
        """The whole answer. raises: ShoalError"""

        async def whole() -> Result:
            return await self._client.generate(prompt, **options)

        return self.portal.call(whole)
