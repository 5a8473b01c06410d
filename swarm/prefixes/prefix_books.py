"""The seam between prefixes and whoever keeps the books: what was given to whom, what was taken and found good."""

from typing import Protocol

from shoal.swarm.identifiers import PeerId
from shoal.swarm.sessions.messages import Open


class PrefixBooks(Protocol):
    """Neither waits nor raises: a session never depends on it."""

    def gave(self, taker: PeerId) -> None:
        """One chunk went to this peer."""

    def took(self, donor: PeerId, request: Open, chunks: int) -> None:
        """In the session of this request so many chunks of this donor stood for what would have been computed here.

        Called when the session ends, only of chunks that were taken in and not found false.
        """
