"""Replicas that die, hang, lie or come late: training goes on, and no gradient is counted twice."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from training.pipeline_group import Driver, Pipeline, Replica, drawn_batch, parameters_of, pipeline, weighted_model

from shoal.node.training.config import BatchSettings
from shoal.node.training.optimizers.inner_settings import InnerSettings
from shoal.swarm.identifiers import PeerId
from shoal.swarm.pipeline.stage_compute import Counting, Microbatch
from shoal.swarm.pipeline.stage_server import StageServer

BATCH = BatchSettings(sequences=8, micro=2)
INNER = InnerSettings(kind="sgd", learning_rate=0.2, clip=0.0)
DOOMED = PeerId("doomed")
Backward = Callable[[Microbatch, bytes, bytes, Counting], Awaitable[bytes]]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return weighted_model(tmp_path, tie_word_embeddings=False)


async def undisturbed(model: Path, cache: Path, steps: int) -> dict[str, Any]:
    """What every stage holds after these steps, with one replica each."""
    async with pipeline(model, cache, 3, INNER, BATCH) as row:
        replicas = [await row.start(stage, f"stage-{stage}") for stage in (1, 2)]
        driver = await row.drive("driver")
        for step in range(steps):
            await driver.step(drawn_batch(step, 8), BATCH.micro)
        return await held(driver, *replicas)


async def held(driver: Driver, *replicas: Replica) -> dict[str, Any]:
    with anyio.fail_after(10):
        while any(replica.server.book.step < driver.driver.step for replica in replicas):  # noqa: ASYNC110
            await anyio.sleep(0.01)
    found = parameters_of(driver.home.steps.model)
    for replica in replicas:
        found |= parameters_of(replica.compute.steps.model)
    return found


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # microbatches that went twice are summed up in another order
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)


def dying(row: Pipeline, peer: PeerId, after: int) -> Callable[[StageServer], None]:
    """Killed when so many gradients have come back to it: they are counted behind it, and it can tell nobody."""

    def change(server: StageServer) -> None:
        compute: Any = server._compute  # noqa: SLF001  where a test can stand in
        backward: Backward = compute.backward
        done = 0

        async def fatal(work: Microbatch, tensor: bytes, gradient: bytes, count: Counting) -> bytes:
            nonlocal done
            done += 1
            if done > after:
                row.network.kill(peer)
            return await backward(work, tensor, gradient, count)

        compute.backward = fatal

    return change


@pytest.mark.anyio
async def test_a_replica_killed_amid_a_step_is_replaced_and_no_gradient_counts_twice(
    model: Path, tmp_path: Path
) -> None:
    """It dies with its first gradient in hand, so the stages around it have to be the same as if it had never been."""
    expected = await undisturbed(model, tmp_path, 3)
    async with pipeline(model, tmp_path, 3, INNER, BATCH) as row:
        await row.start(1, "doomed", dying(row, DOOMED, after=0))
        last, spare = await row.start(2, "last"), await row.start(1, "spare")
        driver = await row.drive("driver")
        for step in range(3):
            await driver.step(drawn_batch(step, 8), BATCH.micro)
        assert not row.network.is_alive(DOOMED)
        assert last.server.redone >= 1, "the last stage had counted it, and gave its gradient again"
        assert 1 <= len(driver.redone) <= 4
        assert {redone.culprit for redone in driver.redone} == {DOOMED}
        assert {redone.step for redone in driver.redone} == {0}
        assert_close(await held(driver, spare, last), expected)


@pytest.mark.anyio
async def test_with_one_microbatch_under_way_a_killed_replica_costs_one_microbatch(model: Path, tmp_path: Path) -> None:
    async with pipeline(model, tmp_path, 3, INNER, BATCH, in_flight=1) as row:
        await row.start(1, "doomed", dying(row, DOOMED, after=5))
        await row.start(2, "last")
        await row.start(1, "spare")
        driver = await row.drive("driver")
        row.network.set_latency(driver.peer, PeerId("spare"), 0.05)  # nobody goes there who need not
        for step in range(4):
            await driver.step(drawn_batch(step, 8), BATCH.micro)
        assert not row.network.is_alive(DOOMED)
        assert driver.driver.redone == 1


@pytest.mark.anyio
async def test_a_last_stage_that_dies_takes_its_own_gradients_along_and_nothing_else(
    model: Path, tmp_path: Path
) -> None:
    async with pipeline(model, tmp_path, 3, INNER, BATCH) as row:
        middle, doomed = await row.start(1, "middle"), await row.start(2, "doomed")
        compute: Any = doomed.compute
        loss = compute.loss

        async def fatal(work: Microbatch, tensor: bytes, count: Counting) -> tuple[float, bytes]:
            if work.step == 1:
                row.network.kill(DOOMED)
            answer: tuple[float, bytes] = await loss(work, tensor, count)
            return answer

        compute.loss = fatal
        await row.start(2, "spare")
        driver = await row.drive("driver")
        for step in range(3):
            done = await driver.step(drawn_batch(step, 8), BATCH.micro)
            assert done.sequences == 8
        assert not row.network.is_alive(DOOMED)
        assert {redone.stage for redone in driver.redone} == {2}
        assert middle.server.book.step >= 2
        assert not middle.server.book.void


@pytest.mark.anyio
async def test_a_hung_replica_is_left_out_when_its_time_is_up(model: Path, tmp_path: Path) -> None:
    async with pipeline(model, tmp_path, 3, INNER, BATCH, deadline_s=3.0) as row:
        hung, _, _ = await row.start(1, "hung"), await row.start(1, "spare"), await row.start(2, "last")
        driver = await row.drive("driver")
        await driver.step(drawn_batch(0, 8), BATCH.micro)
        row.network.hang(hung.peer)
        done = await in_time(driver, 1)
        assert np.isfinite(done)
        assert all(redone.culprit == hung.peer for redone in driver.redone)


async def in_time(driver: Driver, step: int) -> float:
    with anyio.fail_after(40):
        return (await driver.step(drawn_batch(step, 8), BATCH.micro)).loss


@pytest.mark.anyio
async def test_a_stage_without_replicas_is_named_and_waited_for(model: Path, tmp_path: Path) -> None:
    async with pipeline(model, tmp_path, 3, INNER, BATCH) as row:
        await row.start(1, "first")
        driver = await row.drive("driver")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(driver.step, drawn_batch(0, 8), BATCH.micro)
            while not any(row.waiting):  # noqa: ASYNC110
                await anyio.sleep(0.05)
            assert "no replica of stage 2 of 0 to 2 (layers 2:3+head) answers" in row.waiting[0]
            await row.start(2, "last")
        assert driver.driver.step == 1
        assert row.waiting[-1] == ""


@pytest.mark.anyio
async def test_two_drivers_share_the_stages_between_them_step_by_step(model: Path, tmp_path: Path) -> None:
    """Two drivers with half a batch each move the stages behind them as one with all of it would."""
    expected = await undisturbed(model, tmp_path, 1)
    half = BatchSettings(sequences=4, micro=2)
    async with pipeline(model, tmp_path, 3, INNER, half) as row:
        replicas = [await row.start(1, "middle"), await row.start(2, "last")]
        drivers = [await row.drive("ana"), await row.drive("ben")]
        batch = drawn_batch(0, 8)
        halves = [type(batch)(batch.inputs[a:b], batch.targets[a:b], None) for a, b in ((0, 4), (4, 8))]
        async with anyio.create_task_group() as tasks:
            for driver in drivers:
                tasks.start_soon(driver.driver._together)  # noqa: SLF001  both take part before either has finished
        async with anyio.create_task_group() as tasks:
            for driver, part in zip(drivers, halves, strict=True):
                tasks.start_soon(driver.step, part, half.micro)
        found = await held(drivers[0], *replicas)
        first = set(parameters_of(drivers[0].home.steps.model))
        assert_close(
            {k: v for k, v in found.items() if k not in first}, {k: v for k, v in expected.items() if k not in first}
        )


@pytest.mark.anyio
async def test_a_driver_that_dies_holds_nobody_up(model: Path, tmp_path: Path) -> None:
    async with pipeline(model, tmp_path, 3, INNER, BATCH) as row:
        await row.start(1, "middle")
        await row.start(2, "last")
        ana, ben = await row.drive("ana"), await row.drive("ben")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ana.step, drawn_batch(0, 8), BATCH.micro)
            tasks.start_soon(ben.step, drawn_batch(1, 8), BATCH.micro)
        row.network.kill(ben.peer)
        for step in range(2, 4):
            await in_time(ana, step)


@pytest.mark.anyio
async def test_a_step_whose_numbers_are_not_finite_is_left_out_by_all(model: Path, tmp_path: Path) -> None:
    async with pipeline(model, tmp_path, 3, INNER, BATCH) as row:
        replicas = [await row.start(1, "middle"), await row.start(2, "last")]
        driver = await row.drive("driver")
        await driver.step(drawn_batch(0, 8), BATCH.micro)
        before = await held(driver, *replicas)
        norm: Any = replicas[0].compute.steps.stage.model.model.layers[1].input_layernorm.weight
        norm.data.fill_(float("inf"))
        done = await in_time(driver, 1)
        assert np.isnan(done)
        after = await held(driver, *replicas)
        changed = [name for name, value in before.items() if not np.array_equal(value, after[name])]
        assert changed == ["model.layers.1.input_layernorm.weight"]


@pytest.mark.anyio
async def test_a_replica_that_does_not_come_back_from_its_round_is_left_behind_and_joins_again(
    model: Path, tmp_path: Path
) -> None:
    """Its round may wait for the other replica of its stage, and that one for work: somebody has to go first."""
    async with pipeline(model, tmp_path, 3, INNER, BATCH) as row:
        slow, _, _ = await row.start(1, "slow"), await row.start(2, "last"), await row.start(1, "spare")
        driver = await row.drive("driver")
        await driver.step(drawn_batch(0, 8), BATCH.micro)
        advance, held_back = slow.server.gather, anyio.Event()

        async def late(*given: object) -> object:
            await held_back.wait()
            return await advance(*given)  # type: ignore[arg-type]

        slow.server.gather = late  # type: ignore[assignment,method-assign]
        for step in range(1, 4):
            await in_time(driver, step)
        assert slow.server.book.step < 3
        held_back.set()
        for step in range(4, 7):
            await in_time(driver, step)
        await held(driver, slow)
        assert driver.redone == []
