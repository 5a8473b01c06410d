"""A backend over a token source in this process: the driver of a thin client, or a scripted one.

Each generation runs in a task of its own, so its session may be read, left and closed from anywhere.
"""

from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from shoal.swarm.errors import Unavailable
from shoal.swarm.sessions.generation import ServedModel, TokenSource
from shoal.swarm.text.pieces import Piece
from shoal.swarm.text.text_request import TextRequest
from shoal.swarm.text.text_source import Prepared, TextSource

from .backend import Ending, PieceStream

_AHEAD = 64  # pieces computed before anybody reads them


class SourceBackend:
    _group: TaskGroup | None = None  # while the context is entered

    def __init__(self, source: TokenSource) -> None:
        self._texts = TextSource(source)

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        group, self._group = self._group, None
        if group is not None:
            group.cancel_scope.cancel()
            await group.__aexit__(None, None, None)  # the caller's error is not one of the group's
        return None

    async def models(self) -> list[ServedModel]:
        return await self._texts.models()

    async def open(self, request: TextRequest) -> PieceStream:
        prepared = await self._texts.prepare(request)
        if self._group is None:
            raise Unavailable("the client is closed")
        stream = _SessionStream(self._texts, prepared)
        self._group.start_soon(stream.run)
        return stream


class _SessionStream:
    def __init__(self, texts: TextSource, prepared: Prepared) -> None:
        self._texts = texts
        self._prepared = prepared
        self._scope = anyio.CancelScope()
        self._over = anyio.Event()
        self._items_in, self._items = anyio.create_memory_object_stream[Piece | Ending | Exception](_AHEAD)

    async def run(self) -> None:
        try:
            with self._scope, self._items_in:
                await self._items_in.send(await self._outcome())
        finally:
            self._over.set()

    async def _outcome(self) -> Ending | Exception:
        try:
            async with self._texts.generate(self._prepared) as stream:
                async for piece in stream:
                    await self._items_in.send(piece)
        except Exception as error:  # noqa: BLE001 (raised where the pieces are read)
            return error
        seed = self._prepared.tokens.sampling.seed
        reason = stream.finish_reason or "cancelled"
        return Ending(self._prepared.served.name, reason, stream.usage, stream.route, seed)

    async def next(self) -> Piece | Ending:
        try:
            item = await self._items.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError) as error:
            raise Unavailable("the generation was closed before its end") from error
        if isinstance(item, Exception):
            raise item
        return item

    async def close(self) -> None:
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._over.wait()
        self._items.close()
