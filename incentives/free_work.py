"""Work in the free lane as a source of credit: who may do it for whom is drawn, and only what was audited counts.

Nobody pays for a newcomer's session, so its servers are paid with new credit. Whoever could choose them would serve
peers of his own invention. So the beacon of the hour names the servers of each newcomer, and decides afterwards, by a
hash over what the server signed, which sessions are audited: those mint what all of them are worth together, and the
others nothing. A server that does not know which session will be drawn has to compute all.

source of the draw: Thaler and Ravishankar, Using Name-Based Mappings to Increase Hit Rates, 1998 (rendezvous hashing)
"""

from collections.abc import Collection
from hashlib import sha256

SERVERS = 3  # of each newcomer in each hour
_WHO, _WHETHER = b"shoal/1/free-who\0", b"shoal/1/free-whether\0"


def assigned(beacon: bytes, client: bytes, servers: Collection[bytes], count: int = SERVERS) -> tuple[bytes, ...]:
    """The servers of a newcomer in the beacon's hour, by their keys: the same for everybody who knows the same ones."""
    head = sha256(_WHO + beacon + client)

    def place(server: bytes) -> bytes:
        tried = head.copy()
        tried.update(server)
        return tried.digest()

    return tuple(sorted(servers, key=place)[:count])


def is_drawn(beacon: bytes, statement: bytes, rate: float) -> bool:
    """Whether a session is audited, and so mints.

    beacon: of the hour after the server has signed; statement: hash of what it signed
    """
    drawn = sha256(_WHETHER + beacon + statement).digest()
    return int.from_bytes(drawn[:7], "big") < int(rate * 2**56)


def minted(positions: int, price: int, percent: int) -> int:
    """Credits for a drawn session that was found sound.

    price: credits for one position; percent: of sessions that are drawn, so that in the mean each is paid once
    """
    return positions * price * 100 // percent
