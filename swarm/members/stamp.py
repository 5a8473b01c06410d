"""A small proof of work that opens the free lane: hashcash over a beacon of the swarm and the newcomer's key.

The beacon changes every hour and holds a root, the hash of what the owner last signed in an hour before: nobody else
knows it beforehand, so stamps cannot be made long before. Where the owner has signed nothing for hours the root is an
old one, and stamps can be made as long before as it is old; where there is no ledger only the hour counts. One stamp
opens one session at each server; a second is refused as spent. Making one takes 2 ** BITS hashes in the mean (some
tenths of a second), checking it takes one.

source: Back, Hashcash: A Denial of Service Counter-Measure, 2002
"""

from collections.abc import Callable, Collection, Iterator
from hashlib import sha256

import anyio.to_thread
import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import SwarmId

BITS = 18
EPOCH_S = 3600
MAX_STAMP_BYTES = 32
_BEACON, _STAMP = b"shoal/1/beacon\0", b"shoal/1/stamp\0"


class Stamp(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    epoch: int
    nonce: int


stamps = Canonical(Stamp, "a stamp for the free lane", MAX_STAMP_BYTES)


def epoch_of(now: float) -> int:
    return int(now) // EPOCH_S


def beacon(swarm: SwarmId, epoch: int, root: bytes) -> bytes:
    """32 bytes. root: hash of the owner's last entry before that hour, b"" where there is none yet"""
    return sha256(_BEACON + swarm.encode() + b"\0" + epoch.to_bytes(8, "big") + root).digest()


def make_stamp(beacon_: bytes, key: bytes, epoch: int, bits: int = BITS, start: int = 0) -> Stamp:
    """key: of the newcomer. start: another one gives another stamp"""
    head, limit = sha256(_STAMP + beacon_ + key), 1 << (256 - bits)
    nonce = start
    while True:
        tried = head.copy()
        tried.update(nonce.to_bytes(8, "big"))
        if int.from_bytes(tried.digest(), "big") < limit:
            return Stamp(epoch, nonce)
        nonce += 1


def is_good(stamp: Stamp, beacon_: bytes, key: bytes, bits: int = BITS) -> bool:
    if not 0 <= stamp.nonce < 1 << 64:
        return False
    digest = sha256(_STAMP + beacon_ + key + stamp.nonce.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") < 1 << (256 - bits)


Roots = Callable[[], Collection[bytes]]
"""Roots whose beacon is good, the newest first."""


class StampMaker:
    """`lanes.Stamping`: a new stamp for each session. clock: unix seconds; bits: of work that servers ask for"""

    def __init__(
        self, swarm: SwarmId, key: bytes, clock: Callable[[], float], roots: Roots = tuple, bits: int = BITS
    ) -> None:
        self._swarm, self._key, self._clock, self._roots, self._bits = swarm, key, clock, roots, bits
        self._next = 0

    async def stamp(self) -> bytes:
        epoch = epoch_of(self._clock())
        known = beacon(self._swarm, epoch, next(iter(self._roots()), b""))
        start, self._next = self._next, self._next + (1 << 32)
        return stamps.encode(await anyio.to_thread.run_sync(make_stamp, known, self._key, epoch, self._bits, start))


class StampGate:
    """What one server has seen. bits: of work that it asks for"""

    def __init__(self, swarm: SwarmId, bits: int = BITS) -> None:
        self._swarm, self._bits = swarm, bits
        self._spent: dict[int, set[tuple[bytes, int]]] = {}  # by epoch

    def admit(self, data: bytes, key: bytes, now: float, roots: Collection[bytes]) -> None:
        """roots: whose beacon is good, the newest and the one before it

        raises: Refused, MalformedMessage
        """
        if not data:
            raise Refused("a newcomer's session needs a stamp, a small proof of work")
        stamp = stamps.decode(data)
        now_epoch = epoch_of(now)
        if stamp.epoch not in (now_epoch, now_epoch - 1):
            raise Refused("the stamp is of another hour; make a new one")
        if not any(is_good(stamp, known, key, self._bits) for known in self._beacons(stamp.epoch, roots)):
            raise Refused("the stamp shows too little work, or belongs to another peer or swarm")
        for old in [epoch for epoch in self._spent if epoch < now_epoch - 1]:
            del self._spent[old]
        spent = self._spent.setdefault(stamp.epoch, set())
        if (key, stamp.nonce) in spent:
            raise Refused("this stamp has been used; make a new one")
        spent.add((key, stamp.nonce))

    def _beacons(self, epoch: int, roots: Collection[bytes]) -> Iterator[bytes]:
        for root in roots or (b"",):
            yield beacon(self._swarm, epoch, root)
