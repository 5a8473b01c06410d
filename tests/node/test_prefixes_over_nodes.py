"""Prefixes between real nodes: fetched from the peer that has them, kept over a restart, resumed by name."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from shoal.incentives.bodies import Close, Open
from shoal.incentives.chunk_thanks import is_for_chunks
from shoal.incentives.entry import hash_of
from shoal.incentives.store import Store
from shoal.node.local_swarm import LocalNode, create_invite, local_swarm, start_node
from shoal.swarm.home import Home
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import Route, TokenRequest
from shoal.swarm.thin_client import thin_driver

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]
PROMPT = tuple(range(100, 420))
CHUNKS = 4
LONG = tuple((7 * i + i * i // 3) % 3900 + 100 for i in range(1700))
LONG_CHUNKS = 26
NEW = 24
FLAGS = ["--layers", "all", "--kv-disk", "100MB", "--ledger"]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, LocalNode]]:
    layout = dict.fromkeys(("one", "other"), FLAGS)
    with local_swarm(tmp_path, layout) as running:
        yield running


def ask(node: LocalNode, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  JSON
    headers = {"authorization": f"Bearer {node.key}"}
    answer = httpx.request(method, f"{node.api}/shoal/v1{path}", headers=headers, json=body, timeout=60)
    answer.raise_for_status()
    return answer.json()


async def until(done: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not await anyio.to_thread.run_sync(done):  # noqa: ASYNC110  another process, asked over HTTP
            await anyio.sleep(0.1)


async def generate(
    driver: Driver, model: ModelId, peer: PeerId, ids: tuple[int, ...] = PROMPT, **options: str | bool
) -> tuple[tuple[int, ...], Route]:
    async with driver.generate(replace(TokenRequest(model, ids, NEW, trust=frozenset({peer})), **options)) as stream:
        return tuple([choice.id async for choice in stream]), stream.route


def thanked(donor: LocalNode, taker: LocalNode) -> int:
    """Chunks that the donor has settled with this taker, by the donor's own ledger."""
    store = Store(donor.home.ledger, read_only=True)
    try:
        several = [stored.entry for stored in store.all()]
    finally:
        store.close()
    opened = {hash_of(e): e.body for e in several if isinstance(e.body, Open) and is_for_chunks(e.body)}
    closes = [(e.author, e.body) for e in several if isinstance(e.body, Close) and e.body.open in opened]
    me, other = (Identity.load_or_create(node.home.identity).public_key for node in (donor, taker))
    assert all(author == me for author, _ in closes)
    assert all(e.author == other for e in several if hash_of(e) in opened)
    return sum(close.ticks for _, close in closes)


@pytest.mark.anyio
async def test_a_prefix_travels_between_nodes_and_a_session_resumes_after_a_restart(
    nodes: dict[str, LocalNode], tmp_path: Path
) -> None:
    one, other = nodes["one"], nodes["other"]
    first, second = (PeerId(ask(node, "GET", "/status")["peer"]) for node in (one, other))
    invite = create_invite(one)
    async with anyio.create_task_group() as tasks, thin_driver(Home(tmp_path / "client"), tasks, invite) as driver:
        model = (await driver.models())[0].id
        expected, _ = await generate(driver, model, first)
        assert ask(one, "GET", "/kv")["memory"]["chunks"] == 0

        shared, _ = await generate(driver, model, first, share_prefix=True)
        await until(lambda: ask(one, "GET", "/kv")["disk"]["chunks"] == CHUNKS)
        again, route = await generate(driver, model, first, share_prefix=True)
        assert route.hops[0].stored == CHUNKS * 64

        # announcing takes a moment longer than keeping
        await until(lambda: ask(other, "POST", "/kv/fetch", {"prompt": PROMPT})["held"] == CHUNKS)
        told = ask(other, "GET", "/kv")
        assert told["counts"]["fetched"] == CHUNKS
        taken, route = await generate(driver, model, second, share_prefix=True)
        assert route.hops[0].fetched >= (CHUNKS - 1) * 64  # one may have been drawn for an audit
        assert expected == shared == again == taken
        await until(lambda: CHUNKS - 1 <= thanked(one, other) <= CHUNKS)

        named, _ = await generate(driver, model, first, session="a name of my own")
        history = PROMPT + named
        chunks = CHUNKS + len(history) // 64
        await until(lambda: ask(one, "GET", "/kv")["disk"]["chunks"] >= chunks)
        one.kill()
        back = start_node(tmp_path, "one", FLAGS)
        nodes["one"] = back
        try:
            back.wait_for("ready")
            await until(lambda: ask(back, "GET", "/kv")["disk"]["chunks"] >= chunks)
            more, route = await generate(driver, model, first, history, session="a name of my own")
            assert route.hops[0].stored >= CHUNKS * 64
            plain, route = await generate(driver, model, first, history)
            assert route.hops[0].stored == 0
            assert more == plain
            assert ask(back, "POST", "/kv/drop", {"which": "private"})["dropped"] >= CHUNKS
            assert ask(back, "POST", "/kv/drop", {})["dropped"] == CHUNKS
        finally:
            back.stop()
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_donor_that_is_killed_while_it_gives_costs_no_token(
    nodes: dict[str, LocalNode], tmp_path: Path
) -> None:
    one, other = nodes["one"], nodes["other"]
    first, second = (PeerId(ask(node, "GET", "/status")["peer"]) for node in (one, other))
    invite = create_invite(one)
    async with anyio.create_task_group() as tasks, thin_driver(Home(tmp_path / "client"), tasks, invite) as driver:
        model = (await driver.models())[0].id
        expected, _ = await generate(driver, model, first, LONG, share_prefix=True)
        await until(lambda: ask(one, "GET", "/kv")["memory"]["chunks"] == LONG_CHUNKS)
        beginning = {"prompt": LONG[:65]}  # announced; and the rest is still to come
        await until(lambda: ask(other, "POST", "/kv/fetch", beginning)["held"] == 1)
        before = ask(one, "GET", "/kv")["counts"]["given"]
        with httpx.Client(headers={"authorization": f"Bearer {one.key}"}, timeout=60) as donor:

            def kill_while_it_gives() -> None:
                while donor.get(f"{one.api}/shoal/v1/kv").json()["counts"]["given"] == before:
                    pass
                one.kill()

            tasks.start_soon(anyio.to_thread.run_sync, kill_while_it_gives)
            with anyio.fail_after(120):
                got, route = await generate(driver, model, second, LONG, share_prefix=True)
        assert one.process.poll() is not None
        assert got == expected
        assert not route.failovers
        assert route.hops[0].fetched + route.hops[0].stored < LONG_CHUNKS * 64
        told = ask(other, "GET", "/kv")
        assert told["counts"]["false"] == 0
        assert ask(other, "GET", "/status")["peer"] == second
        tasks.cancel_scope.cancel()
