"""Each error's place in the HTTP API: the gateway writes these codes, the client turns them back into the class."""

from dataclasses import dataclass

from shoal.swarm import errors
from shoal.swarm.text.model_choice import NoModelNamed, UnknownModel


@dataclass(frozen=True, slots=True)
class Fault:
    """`type` and `code` of OpenAI's error object."""

    status: int
    type: str
    code: str


_INVALID, _BUSY, _PEER = "invalid_request_error", "service_unavailable_error", "upstream_error"
INTERNAL = Fault(500, "server_error", "internal_error")
WRONG_KEY = Fault(401, "authentication_error", "invalid_api_key")
NOT_FOUND = Fault(404, _INVALID, "not_found")
INVALID = Fault(400, _INVALID, "invalid_request")

FAULTS: dict[type[errors.ShoalError], Fault] = {
    NoModelNamed: Fault(400, _INVALID, "model_required"),
    UnknownModel: Fault(404, _INVALID, "model_not_found"),
    errors.ModelNotServable: Fault(503, _BUSY, "model_not_servable"),
    errors.ContextTooLong: Fault(400, _INVALID, "context_length_exceeded"),
    errors.UsageError: INVALID,
    errors.Refused: Fault(403, "permission_error", "refused"),
    errors.OutOfMemory: Fault(503, _BUSY, "out_of_memory"),
    errors.TimedOut: Fault(503, _BUSY, "timed_out"),
    errors.PeerUnreachable: Fault(503, _BUSY, "peer_unreachable"),
    errors.StreamBroken: Fault(503, _BUSY, "stream_broken"),
    errors.DaemonDied: Fault(503, _BUSY, "daemon_died"),
    errors.SwarmUnreachable: Fault(503, _BUSY, "swarm_unreachable"),
    errors.Unavailable: Fault(503, _BUSY, "unavailable"),
    errors.VersionMismatch: Fault(502, _PEER, "version_mismatch"),
    errors.FrameTooLarge: Fault(502, _PEER, "frame_too_large"),
    errors.BadActivation: Fault(502, _PEER, "bad_activation"),
    errors.MalformedMessage: Fault(502, _PEER, "malformed_message"),
    errors.RemoteFault: Fault(502, _PEER, "bad_peer"),
    errors.LocalFault: INTERNAL,
}
_CLASSES = {fault.code: kind for kind, fault in FAULTS.items()} | {
    WRONG_KEY.code: errors.Refused,
    NOT_FOUND.code: errors.UsageError,
}


def fault_of(error: BaseException) -> Fault:
    """The nearest class of ours; anything else is our own bug."""
    for kind in type(error).__mro__:
        if issubclass(kind, errors.ShoalError) and kind in FAULTS:
            return FAULTS[kind]
    return INTERNAL


def error_of(status: int, code: str | None, message: str) -> errors.ShoalError:
    """What an HTTP answer tells; a server that is not ours is read by its status."""
    kind = _CLASSES.get(code or "")
    if kind is None:
        if status in (401, 403):
            kind = errors.Refused
        elif 400 <= status < 500:
            kind = errors.UsageError
        else:
            kind = errors.LocalFault if status == INTERNAL.status else errors.Unavailable
    return kind(message)
