"""What a driver computes behind the last hop, when it keeps the head for itself (`local_layers`)."""

from shoal.compression.errors import MalformedPayload
from shoal.swarm.errors import BadActivation
from shoal.swarm.identifiers import SessionId

from .compute import Choice, Compute, Work
from .kept_outputs import without_held
from .messages import Feed, Output


class LocalHead:
    """The head that a driver keeps for itself."""

    def __init__(self, compute: Compute, session: SessionId) -> None:
        self._compute = compute
        self._session = session
        self._held = 0

    async def take(self, output: Output) -> Choice | None:
        """raises: BadActivation"""
        feed = Feed(output.start, output.count, (), output.hidden, output.wants_token, True, output.trace)
        try:
            fresh = without_held(feed, self._held)
        except MalformedPayload as error:
            raise BadActivation(str(error)) from error
        if fresh is None:
            return None
        if fresh.start != self._held:
            raise BadActivation(f"positions from {fresh.start} came, {self._held} are held")
        work = Work(self._session, fresh.start, fresh.count, hidden=fresh.hidden, wants_token=fresh.wants_token)
        done = await self._compute.run(work)
        self._held += fresh.count
        return done.choice

    def close(self) -> None:
        self._compute.close(self._session)
