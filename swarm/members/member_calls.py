"""Unary calls between members: every request shows the caller's certificate, every one is checked."""

import msgspec

from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PROTOCOL_VERSION, PeerId, SwarmId
from shoal.swarm.transport import CallHandler, Transport

from .handshake import Gate, check_version


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    protocol: int
    swarm: SwarmId
    certificate: bytes
    body: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def open_envelope(data: bytes) -> Envelope:
    """raises: MalformedMessage, whatever the bytes are"""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise MalformedMessage(f"not a call between members: {error}") from error


class MemberCalls:
    def __init__(self, transport: Transport, gate: Gate) -> None:
        self._transport = transport
        self._gate = gate

    async def call(self, peer: PeerId, method: str, body: bytes = b"", timeout_s: float = 5.0) -> bytes:
        """raises: as `Transport.call`; Refused or VersionMismatch when the peer does not admit us"""
        envelope = Envelope(PROTOCOL_VERSION, self._gate.swarm, self._gate.certificate, body)
        return await self._transport.call(peer, method, _encoder.encode(envelope), timeout_s)

    async def answer(self, method: str, handler: CallHandler) -> None:
        async def guarded(peer: PeerId, data: bytes) -> bytes:
            envelope = open_envelope(data)
            check_version(peer, envelope.protocol)
            if envelope.swarm != self._gate.swarm:
                raise Refused("this node belongs to another swarm")
            self._gate.admit(peer, envelope.certificate)
            return await handler(peer, envelope.body)

        await self._transport.answer(method, guarded)
