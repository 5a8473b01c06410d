"""msgspec structs, dataclasses and plain data as an HTTP answer."""

import msgspec
from starlette.responses import Response


def json_answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
