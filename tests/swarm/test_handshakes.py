"""A private swarm at its doors: every stream and every call begins with a certificate, and both ends look at it."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from swarm.people import NOW, OWNER, certificate, person, private_swarm, public_swarm

from shoal.swarm.errors import Refused, ShoalError, VersionMismatch
from shoal.swarm.identifiers import PROTOCOL_VERSION, ModelId
from shoal.swarm.identity import Identity
from shoal.swarm.members import handshake
from shoal.swarm.members.handshake import greet, read_welcome
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.members.membership import MembershipGuard, Swarm, issue
from shoal.swarm.members.membership_gate import MembershipGate
from shoal.swarm.members.revocation import Revocations, sign_list
from shoal.swarm.sessions import messages
from shoal.swarm.sessions.compute import Compute
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.sessions.messages import CONTROL_PROTOCOL, PUSH_PROTOCOL, Hello
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_transport import MemoryTransport
from shoal.swarm.units import Span

SWARM = private_swarm()
HOST, MEMBER, THROWN_OUT, STRANGER = (person(number) for number in range(1, 5))
METHOD = "/shoal/test/1"
Door = Callable[[MemoryTransport, MembershipGate], Awaitable[None]]


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


def gate(shown: bytes, swarm: Swarm = SWARM) -> MembershipGate:
    revocations = Revocations(SWARM.id, SWARM.owner)
    revocations.merge(sign_list(OWNER, SWARM.id, 1, frozenset({THROWN_OUT.peer_id})))
    return MembershipGate(MembershipGuard(swarm, revocations), shown, lambda: NOW)


class HostsNothing:
    def find(self, model: ModelId, dtype: str, span: Span) -> Compute:
        raise Refused("nothing is hosted here")


async def serve(host: MemoryTransport, shown: bytes) -> None:
    await HopServer(host, gate(shown), HostsNothing()).start()

    async def echo(_: str, body: bytes) -> bytes:
        return body

    await MemberCalls(host, gate(shown)).answer(METHOD, echo)


def stream_door(protocol: str) -> Door:
    async def enter(me: MemoryTransport, mine: MembershipGate) -> None:
        stream = await me.open(HOST.peer_id, protocol)
        try:
            await greet(stream, mine)
            await read_welcome(stream, mine)
        finally:
            stream.abort()

    return enter


async def call_door(me: MemoryTransport, mine: MembershipGate) -> None:
    assert await MemberCalls(me, mine).call(HOST.peer_id, METHOD, b"hello") == b"hello"


DOORS = [stream_door(CONTROL_PROTOCOL), stream_door(PUSH_PROTOCOL), call_door]
DOOR_NAMES = ["control stream", "push stream", "call"]


async def knock(who: Identity, door: Door, shown: bytes, of_host: bytes, swarm: Swarm = SWARM) -> None:
    async with MemoryNetwork(0) as network:
        await serve(network.join(HOST.peer_id), of_host)
        with anyio.fail_after(10):
            await door(network.join(who.peer_id), gate(shown, swarm))


GOOD = certificate(SWARM, HOST)


@pytest.mark.anyio
@pytest.mark.parametrize("door", DOORS, ids=DOOR_NAMES)
async def test_a_member_and_the_owner_come_in(door: Door) -> None:
    await knock(MEMBER, door, certificate(SWARM, MEMBER), GOOD)
    await knock(OWNER, door, b"", GOOD)


REFUSED = [
    ("nothing shown", STRANGER, b"", "no membership certificate"),
    ("rubbish", STRANGER, b"rubbish", "membership certificate"),
    ("a member's, copied", STRANGER, certificate(SWARM, MEMBER), "another peer"),
    ("of another swarm", MEMBER, certificate(private_swarm(2), MEMBER), "another swarm"),
    ("made by oneself", STRANGER, issue(STRANGER, SWARM, STRANGER.peer_id, "0" * 16, NOW), "not signed"),
    ("run out", MEMBER, certificate(SWARM, MEMBER, NOW - 100, ttl_s=50.0), "expired"),
    ("revoked", THROWN_OUT, certificate(SWARM, THROWN_OUT), "revoked"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("door", DOORS, ids=DOOR_NAMES)
@pytest.mark.parametrize(("who", "shown", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_nobody_else_comes_in_by_any_door(door: Door, who: Identity, shown: bytes, words: str) -> None:
    with pytest.raises(ShoalError, match=words) as caught:
        await knock(who, door, shown, GOOD)
    assert isinstance(caught.value, Refused), "and not a fault of somebody"


@pytest.mark.anyio
@pytest.mark.parametrize("door", DOORS[:2], ids=DOOR_NAMES[:2])
async def test_whoever_dials_looks_at_the_answers_certificate_too(door: Door) -> None:
    for of_host in (b"", certificate(SWARM, MEMBER), certificate(SWARM, HOST, NOW - 100, ttl_s=50.0)):
        with pytest.raises(Refused):
            await knock(MEMBER, door, certificate(SWARM, MEMBER), of_host)


@pytest.mark.anyio
@pytest.mark.parametrize("door", DOORS, ids=DOOR_NAMES)
async def test_another_swarm_is_told_that_it_is_one(door: Door) -> None:
    with pytest.raises(Refused, match="another swarm"):
        await knock(MEMBER, door, certificate(SWARM, MEMBER), GOOD, public_swarm())


@pytest.mark.anyio
@pytest.mark.parametrize("protocol", [CONTROL_PROTOCOL, PUSH_PROTOCOL])
async def test_another_protocol_version_is_told_before_anything_else(protocol: str) -> None:
    async with MemoryNetwork(0) as network:
        await serve(network.join(HOST.peer_id), GOOD)
        stream = await network.join(MEMBER.peer_id).open(HOST.peer_id, protocol)
        await stream.send(messages.encode(Hello(PROTOCOL_VERSION + 1, SWARM.id, b"")))
        answer = await handshake.next_message(stream)
        assert isinstance(answer, messages.Failed)
        assert isinstance(handshake.error_of(answer), VersionMismatch)
        stream.abort()
