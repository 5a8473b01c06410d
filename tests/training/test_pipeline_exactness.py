"""A model in stages learns what the same model in one piece learns."""

from pathlib import Path

import anyio
import numpy as np
import pytest
from training.pipeline_group import Replica, drawn_batch, parameters_of, pipeline, unsplit, weighted_model

from shoal.node.training.config import BatchSettings
from shoal.node.training.optimizers.inner_settings import InnerSettings

BATCH = BatchSettings(sequences=8, micro=2)
STEPS = 4


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.mark.anyio
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stages", [1, 2, 3])
async def test_stages_learn_what_the_whole_model_learns(tmp_path: Path, stages: int, tied: bool) -> None:
    model = weighted_model(tmp_path, tie_word_embeddings=tied)
    inner = InnerSettings(learning_rate=0.01, clip=0.0)
    whole = unsplit(model, tmp_path, inner, BATCH)
    losses = [whole.run(drawn_batch(step, 8), step).loss for step in range(STEPS)]
    async with pipeline(model, tmp_path, stages, inner, BATCH) as row:
        replicas = [await row.start(stage, f"stage-{stage}") for stage in range(1, stages)]
        driver = await row.drive("driver")
        found = [(await driver.step(drawn_batch(step, 8), BATCH.micro)).loss for step in range(STEPS)]
        await _taken(replicas)
        together = parameters_of(driver.home.steps.model)
        for replica in replicas:
            together |= parameters_of(replica.compute.steps.model)
    expected = parameters_of(whole.model)
    assert together.keys() == expected.keys()
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    for name, value in expected.items():  # a tied matrix is summed up in another order
        tolerance = 1e-6 if tied and stages > 1 else 0.0
        np.testing.assert_allclose(together[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.anyio
async def test_the_norm_that_clips_is_of_all_stages_together(tmp_path: Path) -> None:
    model = weighted_model(tmp_path, tie_word_embeddings=False)
    inner = InnerSettings(kind="sgd", learning_rate=0.5, clip=0.05)
    whole = unsplit(model, tmp_path, inner, BATCH)
    for step in range(STEPS):
        whole.run(drawn_batch(step, 8), step)
    async with pipeline(model, tmp_path, 3, inner, BATCH) as row:
        replicas = [await row.start(stage, f"stage-{stage}") for stage in (1, 2)]
        driver = await row.drive("driver")
        norms = [(await driver.step(drawn_batch(step, 8), BATCH.micro)).norm for step in range(STEPS)]
        await _taken(replicas)
        together = parameters_of(driver.home.steps.model)
        for replica in replicas:
            together |= parameters_of(replica.compute.steps.model)
    assert min(norms) > 0.05
    for name, value in parameters_of(whole.model).items():
        np.testing.assert_allclose(together[name], value, atol=1e-6, err_msg=name)


async def _taken(replicas: list[Replica]) -> None:
    with anyio.fail_after(10):
        while any(replica.steps_taken < STEPS for replica in replicas):  # noqa: ASYNC110
            await anyio.sleep(0.01)
