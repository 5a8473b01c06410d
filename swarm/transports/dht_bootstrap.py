"""The first words with the swarm: who answers, what time it is there, and whether we can be dialled."""

import asyncio
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shoal.swarm.errors import UsageError
from shoal.swarm.records import CLOCK_SLACK_S

from .dht_imports import import_dht_node

_dht = import_dht_node()
_protocol = sys.modules["hivemind.dht.protocol"]
MAX_ASKED = 32


@dataclass(frozen=True, slots=True)
class Answered:
    """A bootstrap peer that answered."""

    peer_id: Any  # hivemind's PeerID
    node_id: Any  # its DHTID
    clock_ahead_s: float  # how far our clock is ahead of its
    could_dial_us: bool


async def ask_bootstrap_peers(
    node: Any, addresses: Iterable[str], clock: Callable[[], float], timeout_s: float
) -> list[Answered]:
    """Dial and ping each peer in parallel; those that answered within two timeouts.

    addresses: multiaddrs with /p2p/; what is no multiaddr is skipped
    """
    by_peer: dict[Any, list[Any]] = {}
    for text in addresses:
        try:
            address, _, peer = text.rpartition("/p2p/")  # the last one: a relay has one of its own before
            where, peer_id = _dht.Multiaddr(address), _dht.PeerID.from_base58(peer)
        except Exception:  # noqa: BLE001, S112  hivemind's parsers raise whatever they like
            continue
        by_peer.setdefault(peer_id, []).append(where)
    by_peer.pop(node.peer_id, None)
    asked = list(by_peer.items())[:MAX_ASKED]
    answers = await asyncio.gather(*(_ask(node, *peer, clock, timeout_s) for peer in asked))
    return [answer for answer in answers if answer is not None]


async def _ask(
    node: Any, peer_id: Any, addresses: list[Any], clock: Callable[[], float], timeout_s: float
) -> Answered | None:
    request = _protocol.dht_pb2.PingRequest(peer=node.protocol.node_info, validate=not node.protocol.client_mode)
    try:
        async with asyncio.timeout(2 * timeout_s):
            await node.p2p._client.connect(peer_id, addresses)  # hivemind offers no public way
            sent = clock()
            answer = await node.protocol.get_stub(peer_id).rpc_ping(request, timeout=timeout_s)
            received = clock()
            node_id = _dht.DHTID.from_bytes(answer.peer.node_id)
    except Exception:  # noqa: BLE001  whatever goes wrong with one peer, the others are asked
        return None
    return Answered(peer_id, node_id, (sent + received) / 2 - answer.dht_time, answer.available)


def check_clock(answers: Iterable[Answered]) -> None:
    """raises: UsageError when our clock differs from most peers' by more than the swarm tolerates"""
    ahead_s = statistics.median(answer.clock_ahead_s for answer in answers)
    if abs(ahead_s) > CLOCK_SLACK_S:
        direction = "ahead of" if ahead_s > 0 else "behind"
        raise UsageError(
            f"this machine's clock is {abs(ahead_s):.0f} s {direction} the swarm's; set it right (for example "
            "with NTP): records are valid for seconds only"
        )
