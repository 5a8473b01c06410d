"""How the peers of a run find one another: the seam, and its adapter on the swarm's directory.

One DHT key per run, not per round: a record lives for 24 s and is renewed anyway, so a key per round would cost a store
and a look-up each and tell nothing that `Ready` does not tell. Records are the nodes' own, signed, capped, short-lived.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from shoal.swarm.identifiers import PeerId
from shoal.swarm.records import NodeRecord

from .run_identity import RunKey


@dataclass(frozen=True, slots=True)
class Attendee:
    """addresses: multiaddrs without the /p2p/ part"""

    peer: PeerId
    addresses: tuple[str, ...]


class Meeting(Protocol):
    async def announce(self) -> None:
        """Let others find us in this run for a while; called again and again. raises: Unavailable"""

    async def peers(self) -> Sequence[Attendee]:
        """Who is in the run by now, with or without ourselves. raises: Unavailable"""


class RunDirectory(Protocol):
    """What of `transports.dht_directory.DhtDirectory` it takes."""

    async def announce(self, record: NodeRecord) -> None: ...

    async def trainers(self, run: str) -> list[NodeRecord]: ...


class DirectoryMeeting:
    """record: the node's own record as it is now. A node that announces itself by other means puts the run's key into
    its record there, and passes `announces=False`.
    """

    def __init__(
        self, directory: RunDirectory, run: RunKey, record: Callable[[], NodeRecord], announces: bool = True
    ) -> None:
        self._directory = directory
        self._run = run
        self._record = record
        self._announces = announces

    async def announce(self) -> None:
        if self._announces:
            record = self._record()
            runs = tuple(sorted({*record.runs, self._run}))
            await self._directory.announce(msgspec.structs.replace(record, runs=runs))

    async def peers(self) -> list[Attendee]:
        records = await self._directory.trainers(self._run)
        return [Attendee(record.peer, record.addresses) for record in records]


class OpenMeeting:
    """All in one process: for tests, benchmarks and simulated networks."""

    def __init__(self) -> None:
        self._present: dict[PeerId, Attendee] = {}

    def of(self, attendee: Attendee) -> "OpenMeetingSeat":
        return OpenMeetingSeat(self._present, attendee)

    def leave(self, peer: PeerId) -> None:
        self._present.pop(peer, None)


class OpenMeetingSeat:
    def __init__(self, present: dict[PeerId, Attendee], attendee: Attendee) -> None:
        self._present = present
        self._attendee = attendee

    async def announce(self) -> None:
        self._present[self._attendee.peer] = self._attendee

    async def peers(self) -> list[Attendee]:
        return list(self._present.values())
