"""The key that guards every route but /health."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal.swarm.client.error_codes import WRONG_KEY

from .errors import ApiError, error_response

OPEN_PATHS = frozenset({"/health"})


class KeyGuard:
    """Pure ASGI: an answer streams through it untouched."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        if not key:
            raise ValueError("an API without a key is open to every web page that this machine looks at")
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._opens(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            message = "wrong API key; `shoal key show` prints the right one, sent as `Authorization: Bearer KEY`"
            await error_response(ApiError(message, WRONG_KEY))(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _opens(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key)
