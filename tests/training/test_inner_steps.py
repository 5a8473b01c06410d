import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training.tiny_run import tiny_config

from shoal.node.training import events
from shoal.node.training.config import BatchSettings
from shoal.node.training.evaluation import evaluate, outer_in_place
from shoal.node.training.events_board import Board
from shoal.node.training.worker_parts import Prepared
from shoal.node.training.worker_start import prepared
from shoal.node.training.worker_steps import MOST_BROKEN, InnerSteps, LossNotFinite
from shoal.swarm.errors import OutOfMemory


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("steps")
    return prepared(tiny_config(folder), folder / "cache")


def steps_with(ready: Prepared, **settings: object) -> InnerSteps:
    return InnerSteps(ready.module, ready.steps.optimizer, BatchSettings(**settings), torch.device("cpu"))  # type: ignore[arg-type]


def gradients(ready: Prepared, **settings: object) -> tuple[float, np.ndarray]:
    steps = steps_with(ready, sequences=6, **settings)
    result = steps.run(ready.data.windows.batch(range(6)), 0, moves=False)
    return result.loss, ready.parameters.gradients()


@pytest.mark.parametrize("settings", [{"micro": 1}, {"micro": 4}, {"micro": 6}, {"micro": 2, "checkpointing": True}])
def test_parts_and_checkpointing_change_no_gradient(ready: Prepared, settings: dict[str, object]) -> None:
    loss, whole = gradients(ready)
    other, parts = gradients(ready, **settings)
    ready.module.gradient_checkpointing_disable()
    assert other == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert np.abs(whole).max() > 1e-3


def test_bf16_is_near_and_leaves_the_parameters_float32(ready: Prepared) -> None:
    loss, whole = gradients(ready)
    other, rough = gradients(ready, precision="bf16")
    assert other == pytest.approx(loss, rel=0.02)
    cosine = float(whole @ rough / np.linalg.norm(whole) / np.linalg.norm(rough))
    assert 0.98 < cosine < 0.999999
    assert ready.parameters.read().dtype == np.float32


def test_a_document_does_not_see_the_one_before_it_in_its_sequence(ready: Prepared) -> None:
    rows = ready.data.windows.batch([0]).inputs[0]
    first, second = rows[:16], rows[16:]
    joined = np.concatenate([first, second])[None]
    positions = np.concatenate([np.arange(16), np.arange(16)])[None]
    with torch.no_grad():
        isolated = ready.steps.model(
            input_ids=torch.from_numpy(joined), position_ids=torch.from_numpy(positions), use_cache=False
        ).logits[0, 16:]
        alone = ready.steps.model(input_ids=torch.from_numpy(second[None]), use_cache=False).logits[0]
        together = ready.steps.model(input_ids=torch.from_numpy(joined), use_cache=False).logits[0, 16:]
    torch.testing.assert_close(isolated, alone, atol=1e-4, rtol=1e-4)
    assert (together - alone).abs().max() > 1e-3


def test_a_broken_step_moves_nothing_and_several_end_the_training(ready: Prepared) -> None:
    before = ready.parameters.read()
    poisoned = before.copy()
    poisoned[5] = math.nan
    ready.parameters.write(0, poisoned)
    batch = ready.data.windows.batch([0])
    steps = steps_with(ready)
    for _ in range(MOST_BROKEN - 1):
        result = steps.run(batch, 0)
        assert math.isnan(result.loss)
        assert result.tokens == 0
    with pytest.raises(LossNotFinite, match="not a number any more") as raised:
        steps.run(batch, 0)
    assert raised.value.exit_code == 1
    np.testing.assert_array_equal(ready.parameters.read(), poisoned)
    ready.parameters.write(0, before)
    assert steps.run(batch, 0, moves=False).tokens == 32


def test_a_full_device_gets_smaller_parts_until_one_sequence_is_too_much(ready: Prepared) -> None:
    batch = ready.data.windows.batch(range(4))
    steps = steps_with(ready, micro=4)
    whole, tried = steps.model, []

    class Small:
        """A device with room for so many sequences."""

        room = 1

        def __getattr__(self, name: str) -> object:
            return getattr(whole, name)

        def __call__(self, input_ids: torch.Tensor, **more: object) -> object:
            tried.append(len(input_ids))
            if len(input_ids) > self.room:
                raise torch.OutOfMemoryError("full")
            return whole(input_ids=input_ids, **more)

    steps.model = Small()
    assert steps.run(batch, 0, moves=False).tokens == batch.tokens
    assert tried == [4, 2, 1, 1, 1, 1]
    Small.room = 0
    with pytest.raises(OutOfMemory, match="one sequence at a time needs more than the memory of the device"):
        steps.run(batch, 0, moves=False)


def test_perplexity_is_of_the_parameters_given_and_the_own_ones_come_back(ready: Prepared) -> None:
    own = ready.parameters.read()
    assert ready.data.held_out is not None
    with outer_in_place(ready.parameters, np.zeros_like(own)):
        found = evaluate(ready.steps, ready.data.held_out, 3)
    assert found.loss == pytest.approx(math.log(257), rel=1e-4), "a model of zeros knows nothing"
    assert found.perplexity == pytest.approx(257, rel=1e-3)
    np.testing.assert_array_equal(ready.parameters.read(), own)


def test_tensorboard_gets_what_happened(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path)
    board.show(events.StepDone(1, 0, 5.5, 100.0, 640))
    board.show(events.RoundDone(0, 0, (), 640, 5.5, "00", 1000, 1000, 1.0, 0.5))
    board.show(events.Evaluated(0, 5.0, 148.0))
    board.show(events.Waiting("nothing to draw"))
    board.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert found.Scalars("loss/step")[0].value == 5.5
    assert found.Scalars("perplexity/held out")[0].value == 148.0
    assert found.Scalars("network/sent bytes a round")[0].value == 1000
