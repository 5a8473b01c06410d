"""The answer of a unary call: one byte for success or error, then the payload or the error's class and text."""

import msgspec

from shoal.swarm import errors
from shoal.swarm.errors import FrameTooLarge, MalformedMessage, ShoalError
from shoal.swarm.transport import MAX_CALL_BYTES

_OK, _ERROR = b"\x00", b"\x01"
_MAX_TEXT = 500
_BY_NAME = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, ShoalError)
}


class _Failure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    kind: str
    text: str


_decoder = msgspec.msgpack.Decoder(_Failure)


def seal_answer(payload: bytes) -> bytes:
    if len(payload) > MAX_CALL_BYTES:
        return seal_error(FrameTooLarge(f"the answer has {len(payload)} bytes; the limit is {MAX_CALL_BYTES}"))
    return _OK + payload


def seal_error(error: ShoalError) -> bytes:
    return _ERROR + msgspec.msgpack.encode(_Failure(type(error).__name__, str(error)[:_MAX_TEXT]))


def open_answer(answer: bytes) -> bytes:
    """raises: the ShoalError that the peer raised, looked up in a fixed table; MalformedMessage"""
    if len(answer) > MAX_CALL_BYTES + 1:
        raise MalformedMessage(f"an answer of {len(answer)} bytes; the limit is {MAX_CALL_BYTES}")
    kind, payload = answer[:1], answer[1:]
    if kind == _OK:
        return payload
    if kind != _ERROR:
        raise MalformedMessage("an answer that is neither a result nor an error")
    try:
        failure = _decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MalformedMessage(f"an unreadable error: {error}") from error
    raise _BY_NAME.get(failure.kind, errors.RemoteFault)(failure.text[:_MAX_TEXT])
