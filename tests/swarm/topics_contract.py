"""What every adapter of `topics.Topics` must do; a test file of an adapter overrides the fixture `gossips`."""

import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import anyio
import pytest

from shoal.swarm.errors import FrameTooLarge, LocalFault
from shoal.swarm.identifiers import PeerId
from shoal.swarm.topics import MAX_TOPIC_BYTES, Topics

PATIENCE_S = 30.0
PROBE = b"can you hear me"
_numbers = itertools.count()

Gossips = Callable[[int], AbstractAsyncContextManager[dict[PeerId, Topics]]]  # so many peers, all connected


def fresh() -> str:
    return f"test/topic/{next(_numbers)}"


class Ear:
    """A handler that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.heard: list[tuple[PeerId, bytes]] = []
        self.probed: set[PeerId] = set()  # who reaches us
        self._changed = anyio.Event()

    def __call__(self, origin: PeerId, data: bytes) -> None:
        if data == PROBE:
            self.probed.add(origin)
            return
        self.heard.append((origin, data))
        self._changed.set()
        self._changed = anyio.Event()

    async def count(self, number: int) -> None:
        with anyio.fail_after(PATIENCE_S):
            while len(self.heard) < number:
                await self._changed.wait()


async def listening(topics: dict[PeerId, Topics], topic: str) -> dict[PeerId, Ear]:
    """All listen, know of one another's listening, and hear one another: a real mesh forms within about a second, and
    loses what is published before."""
    ears = {peer: Ear() for peer in topics}
    for peer, ear in ears.items():
        await topics[peer].listen(topic, ear)
    with anyio.fail_after(PATIENCE_S):
        for peer, gossip in topics.items():
            while set(await gossip.neighbours(topic)) != set(topics) - {peer}:  # noqa: ASYNC110  no event there
                await anyio.sleep(0.05)
        while not all(ear.probed == set(topics) for ear in ears.values()):
            for gossip in topics.values():
                await gossip.publish(topic, PROBE)
            await anyio.sleep(0.2)
    return ears


class TopicsContract:
    @pytest.mark.anyio
    async def test_every_listener_hears_each_message_once_and_who_published_it(self, gossips: Gossips) -> None:
        async with gossips(3) as topics:
            topic = fresh()
            ears = await listening(topics, topic)
            for number, gossip in enumerate(topics.values()):
                await gossip.publish(topic, bytes([number]))
            for ear in ears.values():
                await ear.count(3)
                assert sorted(ear.heard, key=lambda heard: heard[1]) == [
                    (peer, bytes([number])) for number, peer in enumerate(topics)
                ]

    @pytest.mark.anyio
    async def test_topics_do_not_mix(self, gossips: Gossips) -> None:
        async with gossips(2) as topics:
            one, other = fresh(), fresh()
            ears, others = await listening(topics, one), await listening(topics, other)
            speaker = next(iter(topics.values()))
            await speaker.publish(one, b"one")
            await speaker.publish(other, b"other")
            for ear in (*ears.values(), *others.values()):
                await ear.count(1)
            assert {ear.heard[0][1] for ear in ears.values()} == {b"one"}
            assert {ear.heard[0][1] for ear in others.values()} == {b"other"}

    @pytest.mark.anyio
    async def test_a_message_that_is_too_long_is_refused_and_the_longest_arrives(self, gossips: Gossips) -> None:
        async with gossips(2) as topics:
            topic = fresh()
            ears = await listening(topics, topic)
            speaker = next(iter(topics.values()))
            with pytest.raises(FrameTooLarge):
                await speaker.publish(topic, bytes(MAX_TOPIC_BYTES + 1))
            await speaker.publish(topic, bytes(MAX_TOPIC_BYTES))
            for ear in ears.values():
                await ear.count(1)
                assert len(ear.heard[0][1]) == MAX_TOPIC_BYTES

    @pytest.mark.anyio
    async def test_a_topic_has_one_handler(self, gossips: Gossips) -> None:
        async with gossips(1) as topics:
            topic = fresh()
            (gossip,) = topics.values()
            await gossip.listen(topic, Ear())
            with pytest.raises(LocalFault):
                await gossip.listen(topic, Ear())
