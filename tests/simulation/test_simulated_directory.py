"""The simulated directory forgets, loses and replicates as the real one does."""

import random

import msgspec
import pytest

from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.records import ANNOUNCE_PERIOD_S, RECORD_TTL_S, NodeRecord
from shoal.swarm.simulated.directory import DirectoryConditions, Heard, SimulatedDirectory, identifier
from shoal.swarm.simulated.model import SimulatedModel
from shoal.swarm.simulated.peer import Population, SimulatedPeer, record_bytes
from shoal.swarm.simulated.time import Timeline
from shoal.swarm.units import Span

KEY = b"a key"
MODEL = SimulatedModel(32)
CERTAIN = DirectoryConditions(loss=0.0, latency_s=(0.01, 0.02))


class World:
    def __init__(self, conditions: DirectoryConditions, peers: int = 100) -> None:
        self.timeline = Timeline()
        self.directory = SimulatedDirectory(self.timeline, random.Random(1), conditions)
        generator = random.Random(2)
        self.peers = [SimulatedPeer.draw(generator, Population(clock_skew_s=0.0)) for _ in range(peers)]
        for peer in self.peers:
            self.directory.join(peer.peer)
            peer.host(ModelId("ab" * 32), MODEL, Span(0, 4), {})

    def announce(self, peer: SimulatedPeer) -> NodeRecord:
        record = peer.announce(self.timeline.now, 0)
        self.directory.store(record, [KEY])
        return record

    def look_up(self, keys: tuple[bytes, ...] = (KEY,)) -> list[NodeRecord]:
        heard: list[Heard] = []
        self.directory.look_up(keys, heard.append)
        self.timeline.run(self.timeline.now + 10.0)
        assert len(heard) == 1, "every lookup ends, once"
        return heard[0].records

    def nearest(self, count: int) -> list[PeerId]:
        alive = (peer for peer in self.peers if peer.alive)
        return sorted((p.peer for p in alive), key=lambda p: identifier(p.encode()) ^ identifier(KEY))[:count]

    def kill(self, peers: list[PeerId]) -> None:
        for peer in self.peers:
            if peer.peer in peers:
                peer.died_at = self.timeline.now
                self.directory.leave(peer.peer)


def test_what_is_announced_is_found() -> None:
    world = World(CERTAIN)
    records = [world.announce(peer) for peer in world.peers]
    world.timeline.run(1.0)
    assert sorted(world.look_up(), key=lambda r: r.peer) == sorted(records, key=lambda r: r.peer)


def test_a_record_is_gone_when_its_time_is_over() -> None:
    world = World(CERTAIN)
    world.announce(world.peers[0])
    world.timeline.run(RECORD_TTL_S - 1.0)
    assert len(world.look_up()) == 1
    assert world.look_up() == []


def test_a_new_announcement_takes_the_place_of_the_old_one() -> None:
    world = World(CERTAIN)
    world.announce(world.peers[0])
    world.timeline.run(ANNOUNCE_PERIOD_S)
    newest = world.announce(world.peers[0])
    world.timeline.run(ANNOUNCE_PERIOD_S + 1.0)
    assert world.look_up() == [newest]


def test_copies_die_with_their_holders_and_come_back_with_the_next_announcement() -> None:
    world = World(DirectoryConditions(replicas=5, loss=0.0))
    world.announce(world.peers[-1])
    world.timeline.run(1.0)
    holders = [peer for peer in world.nearest(6) if peer != world.peers[-1].peer]
    world.kill(holders[:4])
    assert len(world.look_up()) == 1, "one of five is left"
    world.kill(holders[4:])
    assert world.look_up() == []
    world.announce(world.peers[-1])
    world.timeline.run(world.timeline.now + 1.0)
    assert len(world.look_up()) == 1


def test_a_peer_that_joins_next_to_a_key_hides_nothing() -> None:
    world = World(CERTAIN, peers=40)
    record = world.announce(world.peers[0])
    world.timeline.run(1.0)
    generator = random.Random(9)
    newcomers = [SimulatedPeer.draw(generator, Population()) for _ in range(3000)]
    newcomers.sort(key=lambda p: identifier(p.peer.encode()) ^ identifier(KEY))
    for newcomer in newcomers[:3]:
        world.directory.join(newcomer.peer)
        world.peers.append(newcomer)
    assert world.nearest(3) == [newcomer.peer for newcomer in newcomers[:3]]
    assert world.look_up() == [record]


@pytest.mark.parametrize(("loss", "replicas", "least"), [(0.05, 5, 1.0), (0.3, 5, 0.6), (0.3, 20, 0.99)])
def test_replicas_make_up_for_loss(loss: float, replicas: int, least: float) -> None:
    world = World(DirectoryConditions(replicas=replicas, asked=replicas + 3, loss=loss), peers=300)
    for peer in world.peers:
        world.announce(peer)
    world.timeline.run(1.0)
    share = len(world.look_up()) / 300
    assert least <= share
    assert (share == 1.0) == (least > 0.9), "30 % loss is too much for five"


def test_when_nobody_answers_a_lookup_ends_with_nothing() -> None:
    world = World(DirectoryConditions(loss=1.0))
    world.announce(world.peers[0])
    assert world.look_up((KEY, b"another")) == []


def test_a_record_is_as_large_as_a_signed_one_and_fits_the_limit() -> None:
    world = World(CERTAIN)
    peer = world.peers[0]
    peer.host(ModelId("ab" * 32), MODEL, Span(0, 4), {other.peer: 50.0 for other in world.peers[1:9]})
    record = peer.announce(0.0, 3)
    assert len(msgspec.msgpack.encode(record)) < record_bytes(record) < 4096


def test_the_timeline_keeps_order_and_refuses_the_past() -> None:
    timeline, seen = Timeline(), list[tuple[float, str]]()

    def note(what: str) -> None:
        seen.append((timeline.now, what))
        if what == "b":
            timeline.after(0.5, note, "b again")

    for when, what in ((3.0, "d"), (1.0, "a"), (2.0, "b"), (2.0, "c"), (9.0, "too late")):
        timeline.at(when, note, what)
    timeline.run(5.0)
    assert seen == [(1.0, "a"), (2.0, "b"), (2.0, "c"), (2.5, "b again"), (3.0, "d")]
    assert timeline.now == 5.0
    with pytest.raises(ValueError, match="has passed"):
        timeline.at(4.0, note, "never")
