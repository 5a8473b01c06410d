"""Sessions that are paid, whose prompts are not computed again: what was skipped is paid as if computed."""

import anyio
import pytest
from incentives.paid_world import CLIENT, PRICE, PaidWorld, paid_world
from simulation.session_world import MODEL, MODEL_ID

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.sessions.generation import Route, TokenRequest

PROMPT = tuple((7 * n + n // 9) % 50 + 1 for n in range(5 * CHUNK_TOKENS + 10))
NEW = 20
EXPECTED = MODEL.expected_tokens(PROMPT, NEW)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


async def ask(swarm: PaidWorld) -> tuple[list[int], Route]:
    assert swarm.driver is not None
    async with swarm.driver.generate(TokenRequest(MODEL_ID, PROMPT, NEW, session="a name of my own")) as stream:
        return [choice.id async for choice in stream], stream.route


@pytest.mark.anyio
@pytest.mark.parametrize("layout", [((1, "all"),), ((1, "embed+0:3"), (2, "3:6+head"))])
async def test_a_skipped_prompt_is_paid_as_if_it_were_computed(layout: tuple[tuple[int, str], ...]) -> None:
    async with paid_world(*layout, keeps_kv=True) as swarm:
        first, _ = await ask(swarm)
        await swarm.settled()
        await anyio.sleep(2)
        once = [swarm.account(number).contributed for number, _ in layout]
        again, route = await ask(swarm)
        await swarm.settled()
        await anyio.sleep(2)
        assert first == again == EXPECTED
        assert [hop.stored for hop in route.hops] == [5 * CHUNK_TOKENS] * len(layout)
        ticks = (len(PROMPT) + NEW - 1) // 32
        assert once == [ticks * PRICE - -(-ticks * PRICE * 5 // 100)] * len(layout)
        assert [swarm.account(number).contributed for number, _ in layout] == [2 * each for each in once]
        assert swarm.ledgers["client"].store.balances.account(CLIENT.public_key).reserved >= 0
        assert all(ledger.failure is None for ledger in swarm.ledgers.values())
