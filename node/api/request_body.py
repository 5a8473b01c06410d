"""Bytes of a request become one type once, or an error that names the field."""

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from shoal.swarm.client.error_codes import Fault

from .errors import ApiError

MAX_BODY_BYTES = 8 << 20  # a context of a million tokens as text
_TOO_LARGE = Fault(413, "invalid_request_error", "request_too_large")
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
Body = TypeVar("Body")


async def read_body(request: Request, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """raises: ApiError 413 before more than the limit is kept"""
    refusal = ApiError(f"the request is larger than {limit_bytes} bytes", _TOO_LARGE)
    declared = request.headers.get("content-length", "0")
    if not declared.isascii() or not declared.isdigit() or int(declared) > limit_bytes:
        raise refusal
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise refusal
    return bytes(body)


def parsed(data: bytes, decoder: msgspec.json.Decoder[Body]) -> Body:
    """Fields that the type does not know are ignored, as other servers of this API do.

    raises: ApiError 400 for malformed JSON, and for a wrong type with the field in `param`
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        path = found.group(1) if found else ""
        words = _PATH.sub("", str(error))
        place = f"{path}: " if path else ""
        raise ApiError(f"{place}{words}", param=re.split(r"[.\[]", path)[0] or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"the body is not valid JSON: {error}") from error
