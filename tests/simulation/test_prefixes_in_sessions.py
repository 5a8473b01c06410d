"""Prefixes in whole sessions, in virtual time: whatever is reused, the tokens are those of an undisturbed run."""

import pytest
from simulation.prefix_world import PROMPT, PrefixWorld, prefix_world
from simulation.session_world import MODEL

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.identifiers import PeerId

NEW = 12
CHUNKS = (len(PROMPT) - 1) // CHUNK_TOKENS
EXPECTED = MODEL.expected_tokens(PROMPT, NEW)
TWO_CHAINS = (("front", "embed+0:3"), ("other front", "embed+0:3"), ("back", "3:6+head"), ("other back", "3:6+head"))
FIRST_CHAIN, SECOND_CHAIN = ("other front", "other back"), ("front", "back")


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


def computed(swarm: PrefixWorld, name: str) -> int:
    return swarm.volunteers[name].compute.computed_positions


@pytest.mark.anyio
async def test_a_prompt_that_was_prefilled_here_before_is_not_computed_again() -> None:
    async with prefix_world(("one", "all")) as swarm:
        tokens, _ = await swarm.ask(NEW)
        await swarm.kept("one", CHUNKS)
        before = computed(swarm, "one")
        again, route = await swarm.ask(NEW)
        assert tokens == again == EXPECTED
        assert route.hops[0].stored == CHUNKS * CHUNK_TOKENS
        assert computed(swarm, "one") - before == len(PROMPT) - CHUNKS * CHUNK_TOKENS + NEW - 1


@pytest.mark.anyio
async def test_a_prefix_is_fetched_from_the_peer_that_has_it() -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        tokens, route = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert route.hops[0].fetched > CHUNKS * CHUNK_TOKENS / 2
        assert computed(swarm, "other") == len(PROMPT) + NEW - 1 - route.hops[0].fetched


@pytest.mark.anyio
async def test_every_hop_of_a_chain_fetches_its_own_layers() -> None:
    async with prefix_world(*TWO_CHAINS) as swarm:
        await swarm.ask(NEW, without=FIRST_CHAIN)
        await swarm.kept("front", CHUNKS)
        await swarm.kept("back", CHUNKS)
        tokens, route = await swarm.ask(NEW, without=SECOND_CHAIN)
        assert tokens == EXPECTED
        front, back = route.hops
        assert front.fetched == back.fetched > 0
        assert computed(swarm, "other front") == computed(swarm, "other back") < len(PROMPT)


@pytest.mark.anyio
async def test_a_hop_that_finds_nothing_makes_the_hops_before_it_compute() -> None:
    async with prefix_world(*TWO_CHAINS) as swarm:
        await swarm.ask(NEW, without=FIRST_CHAIN)
        await swarm.kept("front", CHUNKS)
        for said in swarm.said.values():
            said.pop(PeerId("back"), None)
        tokens, route = await swarm.ask(NEW, without=SECOND_CHAIN)
        assert tokens == EXPECTED
        assert [hop.fetched for hop in route.hops] == [0, 0]


@pytest.mark.anyio
async def test_a_private_prompt_is_neither_kept_nor_announced() -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, share=False)
        assert not swarm.said
        assert not any(prefixes.store.memory.chunks for prefixes in swarm.prefixes.values())


@pytest.mark.anyio
async def test_a_session_resumes_by_its_name_and_no_other_session_finds_it() -> None:
    async with prefix_world(("one", "all")) as swarm:
        long = 2 * CHUNK_TOKENS
        tokens, _ = await swarm.ask(long, share=False, session="mine")
        chunks = (len(PROMPT) + long - 1) // CHUNK_TOKENS
        await swarm.kept("one", chunks)
        history = PROMPT + tuple(tokens)
        more, route = await swarm.ask(NEW, history, share=False, session="mine")
        assert route.hops[0].stored == chunks * CHUNK_TOKENS
        others, other_route = await swarm.ask(NEW, history, share=False, session="yours")
        assert other_route.hops[0].stored == 0
        assert more == others
        assert not swarm.said


@pytest.mark.anyio
async def test_a_donor_that_dies_costs_no_token() -> None:
    async with prefix_world(("one", "all"), ("other", "all")) as swarm:
        await swarm.ask(NEW, without=["other"])
        await swarm.kept("one", CHUNKS)
        swarm.network.kill(PeerId("one"))
        tokens, route = await swarm.ask(NEW, without=["one"])
        assert tokens == EXPECTED
        assert route.hops[0].fetched == 0


@pytest.mark.anyio
async def test_a_hop_that_is_lost_after_the_prefix_was_skipped_is_replaced() -> None:
    async with prefix_world(("front", "embed+0:3"), ("back", "3:6+head"), ("spare", "3:6+head")) as swarm:
        await swarm.ask(NEW, without=["spare"])
        await swarm.kept("front", CHUNKS)
        await swarm.kept("back", CHUNKS)
        swarm.volunteers["back"].compute.fail("break_down", after=3)
        tokens, route = await swarm.ask(NEW)
        assert tokens == EXPECTED
        assert route.failovers


@pytest.mark.anyio
async def test_what_was_fetched_is_not_passed_on() -> None:
    async with prefix_world(("one", "all"), ("other", "all"), ("third", "all")) as swarm:
        await swarm.ask(NEW, without=["other", "third"])
        await swarm.kept("one", CHUNKS)
        await swarm.ask(NEW, without=["one", "third"])
        swarm.network.kill(PeerId("one"))
        _, route = await swarm.ask(NEW, without=["one", "other"])
        assert route.hops[0].fetched == 0
