"""Reservations of the paged cache: contiguous where it can be, scattered where it must be, refused when full."""

import random

import pytest
import torch

from shoal.node.kv_cache import PAGE_TOKENS, PagedCache, Reservation
from shoal.swarm.errors import OutOfMemory

CPU = torch.device("cpu")


def cache(pages: int) -> PagedCache:
    return PagedCache(pages * PAGE_TOKENS, torch.float32, CPU)


def pages_of(room: Reservation) -> set[int]:
    return {page for run in room.runs for page in range(run.first, run.first + run.count)}


def test_a_session_gets_one_run_of_pages_while_there_is_one() -> None:
    room = cache(8).reserve(3 * PAGE_TOKENS - 5)
    assert len(room.runs) == 1
    assert room.runs[0].count == 3
    assert room.slots is None


def test_the_smallest_run_that_fits_is_taken() -> None:
    pool = cache(10)
    rooms = [pool.reserve(PAGE_TOKENS * n) for n in (2, 1, 3, 1)]  # 3 pages stay free at the end
    pool.release(rooms[0])  # 2 free pages at the start
    assert pool.reserve(2 * PAGE_TOKENS).runs[0].first == 0


def test_a_fragmented_pool_gives_scattered_pages_in_order() -> None:
    pool = cache(6)
    rooms = [pool.reserve(PAGE_TOKENS) for _ in range(6)]
    for room in rooms[::2]:
        pool.release(room)
    room = pool.reserve(2 * PAGE_TOKENS + 7)
    assert len(room.runs) == 3
    assert room.slots is not None
    assert room.slots.shape == (2 * PAGE_TOKENS + 7,)
    assert len(set(room.slots.tolist())) == len(room.slots)
    assert {slot // PAGE_TOKENS for slot in room.slots.tolist()} == pages_of(room) == {0, 2, 4}


def test_a_full_cache_says_how_much_is_needed_and_free() -> None:
    pool = cache(4)
    pool.reserve(3 * PAGE_TOKENS)
    with pytest.raises(OutOfMemory, match=r"needs 65 tokens, 64 of 256 are free"):
        pool.reserve(PAGE_TOKENS + 1)
    assert pool.free_tokens == PAGE_TOKENS


def test_truncating_forgets_and_never_invents_positions() -> None:
    room = cache(1).reserve(10)
    room.length = 8
    room.truncate(3)
    assert room.length == 3
    with pytest.raises(ValueError, match="cannot truncate"):
        room.truncate(4)


def test_releasing_twice_is_noticed() -> None:
    pool = cache(2)
    room = pool.reserve(1)
    pool.release(room)
    with pytest.raises(ValueError, match="twice"):
        pool.release(room)


def test_no_page_is_given_to_two_sessions_and_all_come_back() -> None:
    generator, pool, held = random.Random(3), cache(40), list[Reservation]()
    for _ in range(2000):
        if held and generator.random() < 0.5:
            pool.release(held.pop(generator.randrange(len(held))))
        else:
            try:
                held.append(pool.reserve(generator.randint(1, 9 * PAGE_TOKENS)))
            except OutOfMemory:
                assert pool.free_tokens < 9 * PAGE_TOKENS
        taken = [page for room in held for page in pages_of(room)]
        assert len(taken) == len(set(taken))
        assert pool.free_tokens == (40 - len(taken)) * PAGE_TOKENS
    for room in held:
        pool.release(room)
    assert len(pool.reserve(40 * PAGE_TOKENS).runs) == 1
