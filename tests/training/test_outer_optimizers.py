import math

import numpy as np
import pytest
import torch
from training.local_exchange import run_spec

from shoal.compression.update_codec import Values
from shoal.node.training.optimizers.outer import OuterOptimizer, OuterSettings, check_arithmetic
from shoal.node.training.optimizers.schedules import Schedule, cosine
from shoal.node.training.strategies.outer_parameters import OuterParameters
from shoal.swarm.errors import LocalFault

COUNT = 500
BOUNDS = [(0, 200), (200, 500)]


def updates(count: int) -> list[Values]:
    drawn = np.random.default_rng(0)
    return [drawn.standard_normal(COUNT).astype(np.float32) for _ in range(count)]


def torch_optimizer(settings: OuterSettings, values: torch.Tensor) -> torch.optim.Optimizer:
    rate = settings.learning_rate
    match settings.kind:
        case "sgd":
            return torch.optim.SGD([values], lr=rate, weight_decay=0)
        case "nesterov":
            return torch.optim.SGD([values], lr=rate, momentum=settings.momentum, nesterov=True)
        case "adamw":
            betas = settings.beta1, settings.beta2
            return torch.optim.AdamW([values], lr=rate, betas=betas, eps=1e-8, weight_decay=settings.weight_decay)


@pytest.mark.parametrize(
    "settings",
    [
        OuterSettings("sgd", learning_rate=0.3),
        OuterSettings("nesterov", learning_rate=0.7, momentum=0.9),
        OuterSettings("adamw", learning_rate=0.01, weight_decay=0.1),
    ],
    ids=lambda settings: settings.kind,
)
def test_an_outer_optimiser_moves_as_torchs_does(settings: OuterSettings) -> None:
    values = np.linspace(-1, 1, COUNT, dtype=np.float32)
    expected = torch.from_numpy(values.copy())
    reference, ours = torch_optimizer(settings, expected), OuterOptimizer(settings, BOUNDS)
    for update in updates(30):
        expected.grad = torch.from_numpy(update)
        reference.step()
        for fragment, (start, stop) in enumerate(BOUNDS):
            ours.step(values, fragment, update[start:stop])
    np.testing.assert_allclose(values, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_weight_decay_leaves_vectors_alone() -> None:
    settings = OuterSettings("sgd", learning_rate=0.5, weight_decay=0.5)
    values = np.ones(COUNT, np.float32)
    optimizer = OuterOptimizer(settings, [(0, COUNT)], undecayed=[(100, 300)])
    optimizer.step(values, 0, np.zeros(COUNT, np.float32))
    np.testing.assert_array_equal(values[100:300], 1)
    np.testing.assert_array_equal(values[:100], 0.75)
    np.testing.assert_array_equal(values[300:], 0.75)


def test_a_fragment_moves_alone_with_its_own_count_of_updates() -> None:
    settings = OuterSettings("adamw", learning_rate=0.1, schedule=Schedule("constant", warmup=4))
    values = np.zeros(COUNT, np.float32)
    optimizer = OuterOptimizer(settings, BOUNDS)
    optimizer.step(values, 1, np.ones(300, np.float32))
    optimizer.step(values, 1, np.ones(300, np.float32))
    assert optimizer.updates == [0, 2]
    np.testing.assert_array_equal(values[:200], 0)
    np.testing.assert_allclose(values[200:], -(0.025 + 0.05), rtol=1e-5)


def test_the_golden_bits_of_every_outer_optimiser() -> None:
    """The same on every machine: no libm, no reduction, no fused operation has a part in them."""
    golden = {
        "sgd": "6fb767b5ea39154e",
        "nesterov": "cfc28748a3c030d9",
        "adamw": "f50465e7ea1276bf",
    }
    found = {}
    for kind in golden:
        schedule = Schedule("cosine", warmup=3, total=20)
        settings = OuterSettings(kind, learning_rate=0.05, weight_decay=0.01, schedule=schedule)  # type: ignore[arg-type]
        initial = np.arange(-8, 8, dtype=np.float32) / np.float32(16)
        outer = OuterParameters(settings, run_spec([16]), initial)
        for index in range(12):
            outer.optimizer.step(outer.values, 0, (initial * np.float32(index - 5) / np.float32(7)))
        found[kind] = outer.hash().hex()[:16]
    assert found == golden


def test_a_cosine_of_sums_and_products_is_the_cosine() -> None:
    for angle in np.linspace(0, math.pi, 1001):
        assert cosine(float(angle)) == pytest.approx(math.cos(angle), abs=1e-12)


def test_schedules_rise_stay_and_fall() -> None:
    wsd = Schedule("wsd", warmup=10, total=100, final=0.0, decay=0.2)
    assert [wsd.factor(step) for step in (0, 9, 10, 79, 90, 100, 1000)] == [0.1, 1, 1, 1, 0.5, 0, 0]
    bend = Schedule("cosine", warmup=10, total=110, final=0.1)
    assert [round(bend.factor(step), 6) for step in (0, 10, 60, 110, 500)] == [0.1, 1, 0.55, 0.1, 0.1]
    assert all(bend.factor(step) >= bend.factor(step + 1) for step in range(10, 120))
    assert Schedule().factor(12345) == 1


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        (Schedule(warmup=-1), "warmup"),
        (Schedule("cosine", warmup=10, total=10), "total"),
        (Schedule(final=2.0), "final"),
        (Schedule("wsd", total=10, decay=0.0), "decay"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_name(schedule: Schedule, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        schedule.check()


def test_a_thread_that_flushes_subnormals_is_refused() -> None:
    check_arithmetic()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        with pytest.raises(LocalFault, match="subnormal"):
            check_arithmetic()
    finally:
        torch.set_flush_denormal(False)
