"""Newcomers wait in line for room at an engine that is full, and whoever came first comes in first."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from node.engine_chain import CPU, local_model
from node.tiny_models import make_model, save_model

from shoal.node import engine as engines
from shoal.node.engine import Engine
from shoal.node.shard import Shard
from shoal.swarm.errors import LocalFault, OutOfMemory
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.lanes import Claim, Lane
from shoal.swarm.units import Span

WHOLE, TOKENS = Span(0, 6), 64


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(engines, "ROOM_WAIT_S", 120.0)  # nobody is to give up here because the machine is busy
    save_model(make_model("llama"), tmp_path / "model")
    shard = Shard.load(local_model(tmp_path / "model", tmp_path / "cache"), WHOLE, "float32", CPU)
    engine = Engine(shard, 1024, keeps_lanes=True)
    yield engine
    engine.stop()


async def opened(engine: Engine, name: str, lane: Lane) -> None:
    await engine.open(SessionId(name), WHOLE, TOKENS, Sampling(), (), Claim(name, lane))


async def fill(engine: Engine, lane: Lane) -> list[str]:
    """Sessions of a lane until the next one is refused or has to wait. returns: their names"""
    names: list[str] = []

    async def leave_when_one_waits() -> None:
        while not engine._newcomers:  # noqa: ASYNC110, SLF001  the device's thread tells nobody
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()

    while True:
        name = f"{lane} {len(names)}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave_when_one_waits)
            with suppress(OutOfMemory):
                await opened(engine, name, lane)
                names.append(name)
            tasks.cancel_scope.cancel()
        if name not in names:
            return names


def test_whoever_came_first_comes_in_first(engine: Engine) -> None:
    async def run() -> None:
        await fill(engine, Lane.PAID)
        held = await fill(engine, Lane.FREE)
        came: list[str] = []
        news = anyio.Event()

        async def newcomer(name: str) -> None:
            await opened(engine, name, Lane.FREE)
            came.append(name)
            news.set()

        async with anyio.create_task_group() as tasks:
            for name in ("first", "second", "third"):
                tasks.start_soon(newcomer, name)
                await anyio.lowlevel.checkpoint()
            for count in range(1, 4):
                news = anyio.Event()
                engine.close(SessionId(held.pop() if held else came[0]))
                with anyio.fail_after(30):
                    await news.wait()
                assert len(came) == count
        assert came == ["first", "second", "third"]

    anyio.run(run)


def test_one_that_gave_up_holds_up_nobody(engine: Engine) -> None:
    async def run() -> None:
        await fill(engine, Lane.PAID)
        held = await fill(engine, Lane.FREE)
        with anyio.move_on_after(0.05) as gone:
            await opened(engine, "impatient", Lane.FREE)
        assert gone.cancelled_caught
        engine.close(SessionId(held[0]))
        with anyio.fail_after(30):
            await opened(engine, "patient", Lane.FREE)

    anyio.run(run)


def test_one_that_can_never_have_room_is_told_at_once(engine: Engine) -> None:
    small = Engine(engine.shard, 256, keeps_lanes=True)

    async def run() -> None:
        with anyio.fail_after(30), pytest.raises(OutOfMemory):
            await small.open(SessionId("large"), WHOLE, 200, Sampling(), (), Claim("large", Lane.FREE))

    anyio.run(run)
    small.stop()


def test_those_that_wait_hear_when_the_engine_stops(engine: Engine) -> None:
    async def run() -> None:
        await fill(engine, Lane.PAID)
        await fill(engine, Lane.FREE)

        async def stop() -> None:
            await anyio.sleep(0.05)
            await anyio.to_thread.run_sync(engine.stop)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop)
            with anyio.fail_after(30), pytest.raises(LocalFault, match="the engine was stopped"):
                await opened(engine, "waiting", Lane.FREE)

    anyio.run(run)
