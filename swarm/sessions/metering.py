"""The seam between sessions and whoever keeps the books: what a driver pays with, and what a hop is paid by.

Words and openings cross it as bytes that mean nothing here; `shoal.incentives` has the real adapters. Without books
nothing is paid and nothing is refused.
"""

from typing import Protocol

from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.manifest import Manifest
from shoal.swarm.units import Span

from .generation import TokenRequest
from .messages import Open


class Payment(Protocol):
    """The driver's side of one session."""

    @property
    def slice_tokens(self) -> int | None:
        """A prompt goes out in pieces of so many positions, each when the one before is computed; None: as large as
        they may be, and without waiting."""

    @property
    def in_advance(self) -> bool:
        """The opening has to be there before the hop opens; otherwise it may come once the first token has."""

    async def opening(self, peer: PeerId, session: SessionId, span: Span) -> bytes:
        """What goes with the `Open` to this hop; b"" when nothing is offered. Never raises."""

    def arrived(self, positions: int) -> None:
        """The last hop has shown that so many positions are computed."""

    def tick(self) -> bytes:
        """The word that is due and has not been told; b"": none."""

    def word(self) -> bytes:
        """The word for all that has come, told or not: after a repair it may have got lost. b"": none."""

    def last(self) -> bytes:
        """The word for all that has come, unless it is known to have reached all hops. b"": none."""


class Paying(Protocol):
    """The driver's side of all its sessions."""

    def session(self, request: TokenRequest, manifest: Manifest) -> Payment | None:
        """None: this session is not paid."""


class Meter(Protocol):
    """A hop's side of one session."""

    async def admit(self, count: int) -> None:
        """Before so many positions are computed; waits for a word that is on its way. raises: Refused"""

    def computed(self, count: int) -> None: ...

    def given(self, count: int) -> None:
        """Positions that somebody else has computed and was paid for: words for them come, and are not claimed."""

    def take(self, word: bytes) -> None:
        """raises: Refused when the word pays nothing"""

    def close(self) -> None:
        """The session is over."""


class Metering(Protocol):
    """A hop's side of all its sessions."""

    async def open(self, driver: PeerId, request: Open) -> Meter | None:
        """None: this session is served without books, unless its driver pays later. raises: Refused"""

    async def open_late(self, driver: PeerId, request: Open, payment: bytes) -> Meter | None:
        """For a session that runs already, in the free lane. raises: Refused"""
