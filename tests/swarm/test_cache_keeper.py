"""What a standby keeps: bytes that continue each other, within a budget, for their owner only."""

import pytest
from msgspec.structs import replace

from shoal.swarm.errors import BadChunk, OutOfMemory, Refused
from shoal.swarm.identifiers import ModelId, PeerId, SessionId
from shoal.swarm.kv.cache_keeper import CacheKeeper, Kept
from shoal.swarm.kv.kv_chunks import KvChunk, KvFormat, pack_chunk
from shoal.swarm.sessions.kept_outputs import KeptOutputs
from shoal.swarm.sessions.messages import Feed

KIND = KvFormat(ModelId("a" * 64), "float32", (0, 4), b"p" * 32)
DRIVER, HOP, OTHER = PeerId("driver"), PeerId("hop"), PeerId("other")
NAME = SessionId("name")


def chunk(start: int, kind: KvFormat = KIND, count: int = 64) -> bytes:
    return pack_chunk(KvChunk(kind, start, count, bytes(1000)))


def keeping(budget_bytes: int = 1 << 20, *, any_profile: bool = False) -> CacheKeeper:
    keeper = CacheKeeper(budget_bytes)
    keeper.begin(NAME, Kept(DRIVER, HOP, KIND, any_profile=any_profile))
    return keeper


def test_chunks_come_out_as_they_came_in_below_the_position_that_is_asked_for() -> None:
    keeper = keeping()
    data = [chunk(start) for start in (0, 64, 128)]
    assert [keeper.add(NAME, each) for each in data] == [64, 128, 192]
    assert keeper.chunks(NAME, DRIVER, 191) == data[:2]
    assert keeper.chunks(NAME, DRIVER, 1000) == data
    assert keeper.size_bytes == sum(map(len, data))
    keeper.end(NAME)
    assert (len(keeper), keeper.size_bytes) == (0, 0)


def test_what_does_not_fit_is_refused_and_what_is_held_stays() -> None:
    keeper = keeping()
    keeper.add(NAME, chunk(0))
    for bad in (chunk(0), chunk(128), chunk(64, replace(KIND, dtype="float16")), b"x", chunk(64)[:-1]):
        with pytest.raises(BadChunk):
            keeper.add(NAME, bad)
    assert keeper.held(NAME) == 64
    assert keeper.add(NAME, chunk(64, replace(KIND, profile=b""))) == 128, "a lossless one fits everywhere"


def test_a_full_keeper_says_so() -> None:
    keeper = keeping(2500)
    keeper.add(NAME, chunk(0))
    keeper.add(NAME, chunk(64))
    with pytest.raises(OutOfMemory):
        keeper.add(NAME, chunk(128))
    assert len(keeper.chunks(NAME, DRIVER, 1000)) == 2
    keeper.budget_bytes = 0
    with pytest.raises(OutOfMemory):
        keeper.begin(SessionId("another"), Kept(DRIVER, HOP, KIND))


def test_names_owners_and_senders_are_held_apart() -> None:
    keeper = keeping()
    keeper.check_sender(NAME, HOP)
    with pytest.raises(Refused):
        keeper.check_sender(NAME, OTHER)
    with pytest.raises(Refused):
        keeper.chunks(NAME, OTHER, 1000)
    with pytest.raises(Refused):
        keeper.begin(NAME, Kept(OTHER, HOP, KIND))
    with pytest.raises(Refused):
        keeper.add(SessionId("another"), chunk(0))


def test_a_client_that_does_not_know_the_profile_keeps_any() -> None:
    keeper = keeping(any_profile=True)
    keeper.add(NAME, chunk(0, replace(KIND, profile=b"q" * 32)))
    with pytest.raises(BadChunk):
        keeper.add(NAME, chunk(64, replace(KIND, layers=(0, 3))))


def feed(start: int, count: int) -> Feed:
    return Feed(start, count, tuple(range(start, start + count)), b"", True, False, ())


@pytest.mark.parametrize("count", [1, 7, 100])
def test_kept_outputs_beyond_the_limit_lose_their_oldest_and_replay_the_rest(count: int) -> None:
    kept = KeptOutputs(8 * 100)
    for start in range(0, 700, count):
        kept.add(feed(start, count))
    stop = kept.length
    assert stop - 100 <= kept.first <= stop - 80
    for start in (kept.first, stop - 30):
        replayed = list(kept.replay(start))
        assert [token for each in replayed for token in each.ids] == list(range(start, stop))
        assert replayed[0].start == start
    with pytest.raises(ValueError, match="are kept"):
        next(kept.replay(kept.first - 1))


def test_outputs_that_were_taken_over_are_not_there_to_replay() -> None:
    kept = KeptOutputs(1 << 20)
    kept.start_at(192)
    kept.add(feed(192, 4))
    assert kept.first == 192
    assert [each.start for each in kept.replay(192)] == [192]
