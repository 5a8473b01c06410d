"""The first exchange on every stream: protocol version and membership, both ways.

The transport has authenticated the PeerID; what is left to show is that this peer belongs to the swarm.
"""

from typing import Protocol

import anyio

from shoal.swarm.errors import (
    MalformedMessage,
    Refused,
    RemoteFault,
    ShoalError,
    StreamBroken,
    TimedOut,
    VersionMismatch,
)
from shoal.swarm.identifiers import PROTOCOL_VERSION, PeerId, SwarmId
from shoal.swarm.sessions import messages
from shoal.swarm.sessions.messages import Failed, Hello, Welcome
from shoal.swarm.transport import Stream

SILENCE_S = 15.0  # a stranger who opens a stream and says nothing does not keep it


class Gate(Protocol):
    """Who may come in. Implemented by `membership_gate.MembershipGate`; open gates serve public swarms and tests."""

    @property
    def swarm(self) -> SwarmId: ...

    @property
    def certificate(self) -> bytes: ...

    def admit(self, peer: PeerId, certificate: bytes) -> None:
        """raises: Refused with one line that says why"""


async def next_message(stream: Stream) -> messages.AnyMessage:
    """raises: StreamBroken, MalformedMessage, FrameTooLarge"""
    frame = await stream.receive()
    if frame is None:
        raise StreamBroken(f"{stream.peer} closed the stream before it was answered")
    return messages.decode(frame)


async def prompt_message(stream: Stream) -> messages.AnyMessage:
    """The next message of a peer that has nothing to wait for. raises: as `next_message`; TimedOut"""
    with anyio.move_on_after(SILENCE_S):
        return await next_message(stream)
    raise TimedOut(f"{stream.peer} opened a stream and said nothing for {SILENCE_S:.0f} s")


def failure(kind: messages.FailureKind, error: Exception, culprit: PeerId | None = None) -> Failed:
    return Failed(kind, str(error)[:500], culprit)


async def greet(stream: Stream, gate: Gate) -> None:
    """Our side as the one who opened the stream; `read_welcome` reads the answer, so requests can follow at once."""
    await stream.send(messages.encode(Hello(PROTOCOL_VERSION, gate.swarm, gate.certificate)))


async def read_welcome(stream: Stream, gate: Gate) -> None:
    """raises: Refused, VersionMismatch, StreamBroken, RemoteFault"""
    match await next_message(stream):
        case Welcome(protocol, certificate):
            check_version(stream.peer, protocol)
            gate.admit(stream.peer, certificate)
        case Failed() as failed:
            raise error_of(failed)
        case other:
            raise MalformedMessage(f"{stream.peer} answered the handshake with {type(other).__name__}")


async def receive_greeting(stream: Stream, gate: Gate) -> None:
    """Our side as the one dialled: check the peer, tell the verdict. raises: Refused, VersionMismatch, RemoteFault,
    TimedOut"""
    hello = await prompt_message(stream)
    if not isinstance(hello, Hello):
        raise MalformedMessage(f"{stream.peer} began with {type(hello).__name__} instead of Hello")
    try:
        check_version(stream.peer, hello.protocol)
        if hello.swarm != gate.swarm:
            raise Refused("this node belongs to another swarm")
        gate.admit(stream.peer, hello.certificate)
    except ShoalError as error:
        kind: messages.FailureKind = "version" if isinstance(error, VersionMismatch) else "refused"
        await stream.send(messages.encode(failure(kind, error)))
        await stream.close()
        raise
    await stream.send(messages.encode(Welcome(PROTOCOL_VERSION, gate.certificate)))


def check_version(peer: PeerId, protocol: int) -> None:
    if protocol != PROTOCOL_VERSION:
        raise VersionMismatch(f"{peer} speaks protocol {protocol}, this node {PROTOCOL_VERSION}: update the older one")


def error_of(failed: Failed) -> ShoalError:
    """The error a `Failed` stands for when it answers a handshake."""
    match failed.kind:
        case "version":
            return VersionMismatch(failed.text)
        case "refused":
            return Refused(failed.text)
        case _:
            return RemoteFault(f"{failed.kind}: {failed.text}")
