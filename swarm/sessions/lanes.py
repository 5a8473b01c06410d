"""On whose account a session is computed: what a hop learns of its driver and hands to the engine that schedules.

Which lane a driver has is decided behind `Accounts`, by whoever keeps the books; without books everybody is a member.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from shoal.swarm.identifiers import PeerId

from .messages import Open


class Lane(StrEnum):
    PAID = "paid"  # pays for this session
    EARNED = "earned"  # is owed for work that nobody paid; every member where no books are kept
    FREE = "free"  # a newcomer, and whoever neither pays nor is owed


@dataclass(frozen=True, slots=True)
class Claim:
    """account: sessions of one account share its part of the node"""

    account: str
    lane: Lane


MEMBER = Claim("", Lane.EARNED)


class Accounts(Protocol):
    async def claim(self, driver: PeerId, request: Open) -> Claim:
        """raises: Refused when the driver may not open this session, with the line that says why"""


class Stamping(Protocol):
    """The driver's side: what a newcomer shows for a session."""

    async def stamp(self) -> bytes:
        """One for each session, good once at each server; b"" when none is needed."""


class NoBooks:
    """Every driver is a member with an account of its own."""

    async def claim(self, driver: PeerId, request: Open) -> Claim:
        return Claim(driver, Lane.EARNED)
