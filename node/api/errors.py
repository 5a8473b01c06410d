"""Errors in OpenAI's shape, and nothing of our insides in them."""

from collections.abc import Iterator

import msgspec
import structlog
from starlette.responses import Response

from shoal.swarm.client.error_codes import INTERNAL, INVALID, Fault, fault_of
from shoal.swarm.errors import ContextTooLong, LocalFault, OutOfMemory, ShoalError, UsageError
from shoal.swarm.text.model_choice import UnknownModel

log = structlog.get_logger()


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct):
    error: ErrorBody


class ApiError(Exception):
    """A fault that is found before the swarm is asked; `param` names the field to blame."""

    def __init__(self, message: str, fault: Fault = INVALID, param: str | None = None) -> None:
        super().__init__(message)
        self.fault = fault
        self.param = param


def described(error: BaseException, prompt_field: str | None = None) -> tuple[Fault, ErrorBody]:
    """prompt_field: what to blame for a context that is too long."""
    if isinstance(error, ApiError):
        return error.fault, ErrorBody(str(error), error.fault.type, error.param, error.fault.code)
    fault = fault_of(error)
    if not isinstance(error, ShoalError) or isinstance(error, LocalFault):
        log.error("gateway_fault", error=repr(error), exc_info=error)
        return INTERNAL, ErrorBody("an internal error occurred; the node's log has it", fault.type, None, fault.code)
    return fault, ErrorBody(str(error), fault.type, _blamed(error, prompt_field), fault.code)


def _blamed(error: ShoalError, prompt_field: str | None) -> str | None:
    """A message of a usage error begins with the field's name where there is one."""
    match error:
        case UnknownModel():
            return "model"
        case ContextTooLong():
            return prompt_field
        case UsageError():
            word = str(error).split(" ", 1)[0]
            return word if "_" in word or word in ("seed", "temperature", "stop", "messages") else None
        case _:
            return None


def error_response(error: BaseException, prompt_field: str | None = None) -> Response:
    fault, body = described(error, prompt_field)
    headers = {"www-authenticate": "Bearer"} if fault.status == 401 else {}
    if isinstance(error, OutOfMemory):
        headers["retry-after"] = "1"
    return Response(msgspec.json.encode(ErrorAnswer(body)), fault.status, headers, "application/json")


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The single errors inside nested groups."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from leaves(part)
    else:
        yield error
