"""The seam to whoever keeps what a hop did, so that it can be audited: owned by the hop, filled in by the node."""

from typing import Protocol

from .compute import Done
from .identifiers import PeerId
from .messages import Feed, Open


class WorkRecord(Protocol):
    """Of one session at one hop. Nothing here waits or raises."""

    def worked(self, fed: Feed, done: Done) -> None:
        """Positions that were computed, in order. done: with its residual"""

    def ended(self) -> None:
        """The session is over; no more positions come."""


class WorkRecords(Protocol):
    def begin(self, request: Open, driver: PeerId) -> WorkRecord | None:
        """None: this session's work is not kept."""
