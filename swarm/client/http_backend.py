"""A backend over a node's HTTP API; under asyncio and under trio alike."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import anyio
import httpx

from shoal.swarm.errors import ShoalError, StreamBroken, SwarmUnreachable, TimedOut, UsageError
from shoal.swarm.sessions.generation import FinishReason, Route, ServedModel
from shoal.swarm.text.pieces import Piece, Usage
from shoal.swarm.text.text_request import TextRequest

from .backend import Ending, PieceStream
from .http_messages import read_chunk, read_error, read_models, write_request
from .server_events import ServerEvents

CONNECT_S = 5.0
SILENCE_S = 600.0  # without a byte, as long a prompt may take
_MAX_ERROR_BYTES = 64 << 10


class HttpBackend:
    """address: http://127.0.0.1:8411, with or without /v1; raises UsageError for another kind of address"""

    def __init__(self, address: str, key: str | None, silence_s: float = SILENCE_S) -> None:
        self._address = re.sub(r"(/v1)?/*$", "", address)
        headers = {"content-type": "application/json"}
        if key:
            if not key.isascii() or not key.isprintable():
                raise UsageError("the API key holds characters that no key has")
            headers["authorization"] = f"Bearer {key}"
        try:
            self._http = httpx.AsyncClient(
                base_url=self._address, headers=headers, timeout=httpx.Timeout(silence_s, connect=CONNECT_S)
            )
        except httpx.InvalidURL as error:
            raise UsageError(f"{address!r} is not an address: {error}") from error

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        with anyio.CancelScope(shield=True):
            await self._http.__aexit__(kind, error, trace)
        return None

    async def healthy(self, within_s: float) -> bool:
        """Whether a server answers there at all."""
        try:
            return (await self._http.get("/health", timeout=within_s)).is_success
        except (httpx.HTTPError, RuntimeError):
            return False

    async def models(self) -> list[ServedModel]:
        with self.faults():
            answer = await self._http.get("/shoal/v1/models")
        if not answer.is_success:
            raise read_error(answer.status_code, answer.content[:_MAX_ERROR_BYTES])
        return read_models(answer.content)

    async def open(self, request: TextRequest) -> PieceStream:
        try:
            path, body = write_request(request)
        except (TypeError, ValueError) as error:
            raise UsageError(f"messages and tools are plain JSON: {error}") from error
        with self.faults():
            asked = self._http.build_request("POST", path, content=body)
            response = await self._http.send(asked, stream=True)
            if response.is_success:
                return _EventStream(self, response, request)
            try:
                told = b""
                async for data in response.aiter_bytes():
                    told += data
                    if len(told) > _MAX_ERROR_BYTES:
                        break
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        raise read_error(response.status_code, told)

    @contextmanager
    def faults(self) -> Iterator[None]:
        """httpx's errors as ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise SwarmUnreachable(f"no shoal node answers at {self._address}") from error
        except httpx.TimeoutException as error:
            raise TimedOut(f"{self._address} was silent for too long") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise UsageError(f"{self._address!r} is not an address of an API: {error}") from error
        except (httpx.TransportError, httpx.StreamError, httpx.DecodingError) as error:
            raise StreamBroken(f"the connection to {self._address} broke") from error
        except RuntimeError as error:
            if not self._http.is_closed:
                raise
            raise StreamBroken("the client is closed") from error


class _EventStream:
    def __init__(self, backend: HttpBackend, response: httpx.Response, request: TextRequest) -> None:
        self._backend = backend
        self._response = response
        self._seed = request.sampling.seed
        self._model = request.model or ""
        self._bytes = response.aiter_bytes()
        self._events = ServerEvents()
        self._waiting: list[bytes] = []
        self._usage = Usage(0, 0)
        self._route = Route()
        self._reason: FinishReason | None = None

    async def next(self) -> Piece | Ending:
        try:
            return await self._next()
        except ShoalError:
            await self.close()
            raise

    async def _next(self) -> Piece | Ending:
        while True:
            while not self._waiting:
                with self._backend.faults():
                    data = await anext(self._bytes, None)
                if data is None:
                    raise StreamBroken("the answer ended in the middle")
                self._waiting = self._events.feed(data)[::-1]
            event = self._waiting.pop()
            if event == b"[DONE]":
                await self.close()
                return self._ending()
            piece = self._take(event)
            if piece is not None:
                return piece

    def _take(self, event: bytes) -> Piece | None:
        chunk = read_chunk(event)
        self._model = chunk.model or self._model
        self._reason = chunk.finish_reason or self._reason
        self._usage = chunk.used or self._usage
        if chunk.shoal is not None:
            self._seed, self._route = chunk.shoal.seed, chunk.shoal.route
        return chunk.piece

    def _ending(self) -> Ending:
        return Ending(self._model, self._reason or "stop", self._usage, self._route, self._seed)

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._response.aclose()
