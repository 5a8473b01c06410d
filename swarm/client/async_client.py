"""`shoal.aconnect()`: the client for asyncio, and over HTTP for trio."""

from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Self, Unpack

import anyio

from shoal.swarm.errors import UsageError
from shoal.swarm.sessions.generation import ServedModel
from shoal.swarm.text.pieces import Piece
from shoal.swarm.text.text_request import TextRequest

from .backend import Backend, Ending, PieceStream
from .generation_options import GenerationOptions, Prompt, text_request
from .results import Result, result_of

OpenBackend = Callable[[], AbstractAsyncContextManager[Backend]]


class AsyncStream:
    """Iterate for the pieces, then read `result`. Leaving `async with`, or `aclose`, cancels what still runs."""

    def __init__(self, client: "AsyncClient", request: TextRequest) -> None:
        self._client = client
        self._request = request
        self._pieces: list[Piece] = []
        self._running: PieceStream | None = None
        self._ending: Ending | None = None
        self._closed = False

    @property
    def result(self) -> Result:
        """raises: UsageError before the end"""
        if self._ending is None:
            raise UsageError("the stream has no result yet: read it to its end first")
        return result_of(self._pieces, self._ending)

    async def next_piece(self) -> Piece | None:
        """None after the last one. raises: ShoalError"""
        if self._ending is not None or self._closed:
            return None
        try:
            if self._running is None:
                self._running = await self._client.backend.open(self._request)
                self._client.running.add(self)
            item = await self._running.next()
        except BaseException:
            await self.aclose()
            raise
        if isinstance(item, Ending):
            self._ending = item
            await self.aclose()
            return None
        self._pieces.append(item)
        return item

    async def aclose(self) -> None:
        self._closed = True
        self._client.running.discard(self)
        if self._running is not None:
            running, self._running = self._running, None
            await running.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        piece = await self.next_piece()
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncClient:
    """Use as `async with shoal.aconnect() as client`, or await it and call `aclose` in the same task."""

    def __init__(self, open_backend: OpenBackend, model: str | None = None) -> None:
        self._open_backend = open_backend
        self._model = model
        self._backend: Backend | None = None
        self._stack = AsyncExitStack()
        self.running: set[AsyncStream] = set()

    @property
    def backend(self) -> Backend:
        """raises: UsageError when the client is not open"""
        if self._backend is None:
            raise UsageError("the client is not open: use `async with shoal.aconnect() as client`")
        return self._backend

    async def __aenter__(self) -> Self:
        if self._backend is None:
            self._backend = await self._stack.enter_async_context(self._open_backend())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __await__(self) -> Generator[object, None, Self]:
        return self.__aenter__().__await__()

    async def aclose(self) -> None:
        """Cancel running streams and let go of everything; harmless when repeated."""
        with anyio.CancelScope(shield=True):
            for stream in list(self.running):
                await stream.aclose()
        self._backend = None
        await self._stack.aclose()

    async def models(self) -> list[ServedModel]:
        """What the swarm knows, servable or not."""
        return await self.backend.models()

    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> AsyncStream:
        """Pieces as they come. raises: UsageError, TypeError for an unknown option; the rest while reading"""
        options.setdefault("model", self._model)
        return AsyncStream(self, text_request(prompt, **options))

    async def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Result:
        """The whole answer. raises: ShoalError"""
        async with self.stream(prompt, **options) as stream:
            async for _ in stream:
                pass
        return stream.result
