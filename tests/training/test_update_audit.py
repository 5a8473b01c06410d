"""Updates of trainers, honest and not: their steps taken again by somebody else, and their worth on held-out text."""

import msgspec
import numpy as np
import pytest
import torch
from training.tiny_run import tiny_config

from shoal.compression.update_codec import Values
from shoal.incentives.audit_threshold import Finding, Threshold
from shoal.incentives.step_statement import StepStatement, decode, encode, is_signed, leads, signed
from shoal.incentives.training_draw import quality_percent
from shoal.incentives.training_value import calibrated, centred, first_order, leave_one_out
from shoal.node.training.data.assignment import DataOrder, Roster, Share, share_of
from shoal.node.training.parameters import ModelParameters
from shoal.node.training.update_audit import StepLog, StepState, batches_of, state_now, step_distance, taken_again
from shoal.node.training.update_value import held_out_gradient, held_out_loss
from shoal.node.training.worker_parts import Prepared
from shoal.node.training.worker_start import prepared
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity

TRAINER = Identity(bytes([31]) * 32)
PEERS = tuple(PeerId(name) for name in ("anna", "bert", "carl", "dora"))
SEQUENCES, EVERY, INTERVALS = 4, 3, 3
LIMIT = Threshold(1e-3, 100, 0.0)
OUTER = bytes([1]) * 32


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trainer")
    return prepared(tiny_config(folder), folder / "cache")


@pytest.fixture(scope="module")
def auditor(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("auditor")
    return prepared(tiny_config(folder), folder / "cache")


@pytest.fixture(scope="module")
def initial(trainer: Prepared) -> StepState:
    return state_now(trainer.steps, trainer.parameters)


def share_for(order: DataOrder, peer: PeerId) -> Share:
    order = msgspec.structs.replace(order, share=EVERY * INTERVALS * SEQUENCES)
    share = share_of(order, Roster().after(order, 0, PEERS), peer, 1)
    assert share is not None
    return share


def worked(
    who: Prepared, start: StepState, share: Share, intervals: int = INTERVALS
) -> tuple[StepStatement, StepLog, list[StepState]]:
    """A round's inner steps, logged; the states at the beginning and at the end of each interval."""
    taken_again(who.steps, who.parameters, who.data.windows, start, [], 0)
    log, states = StepLog(start, EVERY), [start]
    for number, batch in enumerate(batches_of(share, 0, EVERY * intervals, SEQUENCES)):
        who.steps.run(who.data.windows.batch(batch), number)
        log.stepped(who.steps, who.parameters)
        if len(log.ends) == len(states):
            states.append(state_now(who.steps, who.parameters))
    return signed(TRAINER, log.statement(b"tiny", 1, OUTER, 0, bytes(32), (bytes(32), bytes(32)))), log, states


def audited(auditor: Prepared, share: Share, start: StepState, claimed: Values, interval: int) -> Finding:
    """The share is what the auditor derives from the record."""
    batches = batches_of(share, interval * EVERY * SEQUENCES, EVERY, SEQUENCES)
    again = taken_again(auditor.steps, auditor.parameters, auditor.data.windows, start, batches, interval * EVERY)
    return LIMIT.finding(step_distance(start.parameters, claimed, again.parameters))


def test_honest_steps_of_any_interval_are_found_sound(trainer: Prepared, auditor: Prepared, initial: StepState) -> None:
    share = share_for(trainer.data.order, PEERS[0])
    statement, log, states = worked(trainer, initial, share)
    for interval in range(INTERVALS):
        start, end = states[interval], states[interval + 1]
        assert leads(statement, interval, start.digest(), end.digest(), log.paths(interval))
        assert audited(auditor, share, start, end.parameters, interval) is Finding.SOUND


def forged(kind: str, trainer: Prepared, initial: StepState) -> Values:
    """What a cheat offers as the parameters at the end of its first interval."""
    windows, order = trainer.data.windows, trainer.data.order
    own = batches_of(share_for(order, PEERS[0]), 0, EVERY, SEQUENCES)
    if kind == "copied from another peer":
        return worked(trainer, initial, share_for(order, PEERS[1]), 1)[2][1].parameters
    if kind == "delayed":  # an honest update of a round before, brought again
        moved = worked(trainer, initial, share_for(order, PEERS[0]), 1)[2][1]
        later = taken_again(trainer.steps, trainer.parameters, windows, moved, own, 0)
        return np.asarray(initial.parameters + (later.parameters - moved.parameters), np.float32)
    honest = taken_again(trainer.steps, trainer.parameters, windows, initial, own, 0).parameters
    step = honest - initial.parameters
    if kind == "sign-flipped":
        return np.asarray(initial.parameters - step, np.float32)
    if kind == "one step fewer":
        return taken_again(trainer.steps, trainer.parameters, windows, initial, own[:-1], 0).parameters
    if kind == "scaled up":
        return np.asarray(initial.parameters + np.float32(1.5) * step, np.float32)
    if kind == "noise":
        noise = np.random.default_rng(1).standard_normal(len(step)).astype(np.float32)
        return np.asarray(initial.parameters + noise * step.std(), np.float32)
    return initial.parameters  # nothing


@pytest.mark.parametrize(
    "kind",
    ["copied from another peer", "delayed", "sign-flipped", "one step fewer", "scaled up", "noise", "no step at all"],
)
def test_updates_that_are_not_the_work_are_found(
    trainer: Prepared, auditor: Prepared, initial: StepState, kind: str
) -> None:
    share = share_for(trainer.data.order, PEERS[0])
    assert audited(auditor, share, initial, forged(kind, trainer, initial), 0) is Finding.GROSS


def test_a_trainer_cannot_show_other_states_than_it_signed_for(trainer: Prepared, initial: StepState) -> None:
    statement, log, states = worked(trainer, initial, share_for(trainer.data.order, PEERS[0]))
    start, end, paths = states[1].digest(), states[2].digest(), log.paths(1)
    assert leads(statement, 1, start, end, paths)
    assert not leads(statement, 1, states[0].digest(), end, paths)
    assert not leads(statement, 1, start, states[3].digest(), paths)
    assert not leads(statement, 2, start, end, paths)
    assert not leads(statement, 3, start, end, paths)
    assert not leads(msgspec.structs.replace(statement, round=2), 1, start, end, paths)
    assert not leads(msgspec.structs.replace(statement, before=bytes(32)), 1, start, end, paths)
    moments = {name: value for name, value in states[1].moments.items() if "exp_avg_sq" not in name}
    assert StepState(states[1].parameters, moments).digest() != start
    assert is_signed(decode(encode(statement)))


class Round:
    """Four peers' updates of one round, and what held-out text says of them."""

    def __init__(self, who: Prepared, initial: StepState) -> None:
        assert who.data.held_out is not None
        assert isinstance(who.parameters, ModelParameters)
        self.who, self.start, self.text = who, initial.parameters, who.data.held_out
        self.windows = range(min(12, len(self.text)))
        shares = [share_for(who.data.order, peer) for peer in PEERS]
        self.updates = [worked(who, initial, share)[2][-1].parameters - self.start for share in shares]
        self.gradient = held_out_gradient(who.steps, who.parameters, self.text, self.start, self.windows)

    def loss(self, moved: Values) -> float:
        assert isinstance(self.who.parameters, ModelParameters)
        at = np.asarray(self.start + moved, np.float32)
        return held_out_loss(self.who.steps, self.who.parameters, self.text, at, self.windows)


@pytest.fixture(scope="module")
def one_round(trainer: Prepared, initial: StepState) -> Round:
    return Round(trainer, initial)


def test_honest_updates_are_worth_something_and_flipped_ones_less_than_nothing(one_round: Round) -> None:
    honest = first_order(one_round.gradient, one_round.updates, [1.0] * 4)
    assert min(honest) > 0
    flipped = [-one_round.updates[0], *one_round.updates[1:]]
    values = first_order(one_round.gradient, flipped, [1.0] * 4)
    assert values[0] == pytest.approx(-honest[0])
    mean = sum(values)  # each is weighted by a quarter
    assert [quality_percent(4 * value, mean) for value in values] == [0, 100, 100, 100]


def test_the_first_order_of_a_small_step_is_the_fall_of_the_loss(one_round: Round) -> None:
    small = [np.asarray(update * np.float32(0.003), np.float32) for update in one_round.updates]
    told = sum(first_order(one_round.gradient, small, [1.0] * 4))
    mean = np.mean(small, axis=0).astype(np.float32)
    fallen = one_round.loss(np.zeros_like(mean)) - one_round.loss(mean)
    assert told == pytest.approx(fallen, rel=0.1)


def test_leaving_one_out_agrees_with_the_first_order_on_who_did_harm(one_round: Round) -> None:
    updates = [-one_round.updates[0], *one_round.updates[1:]]
    weights = [1.0] * 4
    scores = centred(first_order(one_round.gradient, updates, weights))
    measured = leave_one_out(one_round.loss, updates, weights)
    found = calibrated(scores, measured)
    assert measured[0] < 0 < min(measured[1:])
    assert found.agreement > 0.9
    assert 0.2 < found.factor < 5
    assert found.value(float("nan")) == 0.0


def test_an_update_that_is_no_number_is_worth_nothing(one_round: Round) -> None:
    broken = one_round.updates[0].copy()
    broken[7] = np.nan
    values = first_order(one_round.gradient, [broken, one_round.updates[1], broken[:-1]], [1.0] * 3)
    assert np.isnan(values[0])
    assert np.isnan(values[2])
    assert quality_percent(values[0], 1.0) == 0


def test_weighing_held_out_text_leaves_the_trainer_as_it_was(trainer: Prepared, one_round: Round) -> None:
    before = trainer.parameters.read()
    one_round.loss(one_round.updates[0])
    np.testing.assert_array_equal(trainer.parameters.read(), before)
    assert not trainer.parameters.gradients().any()
