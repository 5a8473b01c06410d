"""All peers of a round in one process: the real codecs, sums and reducers' error feedback, without a network.

For a machine that trains alone, for benchmarks of the loss, and for tests. A round closes when every member has made
its offer; members that leave are no longer waited for.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Sequence

import anyio

from shoal.compression.aggregate import Contribution, weighted_mean
from shoal.compression.error_feedback import ErrorFeedback, send
from shoal.compression.errors import MalformedPayload
from shoal.compression.update_codec import Values
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import Offer, Outcome, OutOfStep, RoundSkipped, RunSpec, seed_of

Combine = Callable[[Sequence[Contribution]], Values]


class _Meeting:
    """One round while its offers come in."""

    def __init__(self) -> None:
        self.offers: dict[PeerId, Offer] = {}
        self.closed = anyio.Event()
        self.answers: dict[PeerId, Outcome | RoundSkipped | OutOfStep] = {}


class LocalGroup:
    """skipped: rounds that are lost; combine: how a shard's updates become one, `weighted_mean` unless told

    kept: outcomes that are remembered, for whoever asks again; all unless told
    """

    def __init__(
        self,
        spec: RunSpec,
        members: Sequence[PeerId],
        skipped: Collection[int] = (),
        combine: Combine = weighted_mean,
        kept: int | None = None,
    ) -> None:
        self.spec = spec
        self.members = set(members)
        self.skipped = set(skipped)
        self.combine = combine
        self.rounds = 0  # that had an outcome
        self.outcomes: deque[Outcome] = deque(maxlen=kept)
        self.sent_bytes: Counter[PeerId] = Counter()  # payloads offered, by peer
        self.received_bytes: Counter[PeerId] = Counter()  # aggregates handed out, by peer
        self._feedback: dict[tuple[int, int], ErrorFeedback] = {}  # by fragment and shard
        self._meetings: dict[tuple[int, int], _Meeting] = defaultdict(_Meeting)

    def exchange_of(self, peer: PeerId) -> "LocalExchange":
        return LocalExchange(self, peer)

    def join(self, peer: PeerId) -> None:
        """The peer takes part from now on: rounds that are open wait for it too."""
        self.members.add(peer)

    def leave(self, peer: PeerId) -> None:
        self.members.discard(peer)
        self._close_full_meetings()

    async def exchange(self, peer: PeerId, offer: Offer) -> Outcome:
        """raises: RoundSkipped, OutOfStep, ValueError"""
        if peer not in self.members:
            raise ValueError(f"{peer} is no member of this group")
        for outcome in reversed(self.outcomes):  # a peer that was restarted asks again
            if outcome.round == offer.round and any(contributor == peer for contributor, _ in outcome.contributors):
                return outcome
        if self.outcomes and offer.round <= self.outcomes[-1].round:
            raise OutOfStep(f"round {offer.round} is over", self.outcomes[-1].round + 1, sorted(self.members - {peer}))
        self._checked(offer)
        key = offer.round, offer.fragment
        meeting = self._meetings[key]
        meeting.offers[peer] = offer
        self._close_full_meetings()
        try:
            await meeting.closed.wait()
        except BaseException:
            if not meeting.closed.is_set():
                meeting.offers.pop(peer, None)
            raise
        answer = meeting.answers[peer]
        if isinstance(answer, Outcome):
            return answer
        raise answer

    def settle(self, offers: dict[PeerId, Offer]) -> Outcome:
        """The outcome of these offers, without waiting for anyone; they must agree on round, fragment and state.

        raises: RoundSkipped, ValueError
        """
        first = next(iter(offers.values()), None)
        if first is None or len(offers) < self.spec.quorum or first.round in self.skipped:
            raise RoundSkipped(f"{len(offers)} of {self.spec.quorum} peers that a round needs")
        if {(o.round, o.fragment, o.state) for o in offers.values()} != {(first.round, first.fragment, first.state)}:
            raise ValueError("offers of several rounds, fragments or states")
        decoded = {peer: self._checked(offer) for peer, offer in offers.items()}
        aggregates = tuple(
            self._reduce(first, shard, [Contribution(p, offers[p].tokens, decoded[p][shard]) for p in offers])
            for shard in range(len(first.payloads))
        )
        contributors = tuple(sorted((peer, offer.tokens) for peer, offer in offers.items()))
        outcome = Outcome(first.round, first.fragment, aggregates, contributors)
        for peer, offer in offers.items():
            self.sent_bytes[peer] += sum(map(len, offer.payloads))
            self.received_bytes[peer] += sum(map(len, aggregates))
        self.outcomes.append(outcome)
        self.rounds += 1
        return outcome

    def feedback(self, fragment: int, shard: int) -> ErrorFeedback:
        """What the reducer of this shard has left out so far."""
        start, stop = self.spec.sharding(fragment).bounds()[shard]
        return self._feedback.get((fragment, shard), ErrorFeedback.empty(stop - start, self.spec.reducer_decay))

    def _reduce(self, offer: Offer, shard: int, contributions: Sequence[Contribution]) -> bytes:
        seed = seed_of(offer.round, offer.fragment, shard)
        sent = send(self.spec.codec(), self.feedback(offer.fragment, shard), self.combine(contributions), seed)
        self._feedback[offer.fragment, shard] = sent.feedback
        return sent.payload

    def _checked(self, offer: Offer) -> list[Values]:
        """What the payloads say, shard by shard. raises: ValueError"""
        if not 0 <= offer.fragment < len(self.spec.fragments) or offer.tokens < 1 or len(offer.state) != 32:
            raise ValueError(f"an offer that does not fit the run: {offer.fragment=}, {offer.tokens=}")
        bounds = self.spec.sharding(offer.fragment).bounds()
        if len(offer.payloads) != len(bounds):
            raise ValueError(f"{len(offer.payloads)} payloads for {len(bounds)} shards")
        codec = self.spec.codec()
        try:
            return [
                codec.decode(payload, stop - start, seed_of(offer.round, offer.fragment, shard))
                for shard, (payload, (start, stop)) in enumerate(zip(offer.payloads, bounds, strict=True))
            ]
        except MalformedPayload as error:
            raise ValueError(f"a payload that does not fit its shard: {error}") from error

    def _close_full_meetings(self) -> None:
        for key, meeting in list(self._meetings.items()):
            if meeting.offers and self.members <= meeting.offers.keys():
                self._close(meeting)
                del self._meetings[key]

    def _close(self, meeting: _Meeting) -> None:
        """The state that most peers are at goes on; the others are out of step."""
        states = Counter(offer.state for offer in meeting.offers.values())
        state = min(states, key=lambda s: (-states[s], s))
        agreed = {peer: offer for peer, offer in meeting.offers.items() if offer.state == state}
        for peer, offer in meeting.offers.items():
            if peer not in agreed:
                meeting.answers[peer] = OutOfStep("another state than the group's", offer.round, sorted(agreed))
        try:
            answer: Outcome | RoundSkipped = self.settle(agreed)
        except RoundSkipped as skipped:
            answer = skipped
        for peer in agreed:
            meeting.answers[peer] = answer
        meeting.closed.set()


class LocalExchange:
    """One peer's `Exchange` with the others of its group."""

    def __init__(self, group: LocalGroup, peer: PeerId) -> None:
        self.group = group
        self.peer = peer

    async def exchange(self, offer: Offer) -> Outcome:
        """raises: RoundSkipped, OutOfStep, ValueError"""
        return await self.group.exchange(self.peer, offer)
