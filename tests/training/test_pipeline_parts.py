"""Cutting a model, loading a part of it, choosing places and routes, counting once, and putting it together again."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from training.pipeline_group import parameters_of, weighted_model
from training.tiny_run import tiny_config

from shoal.node import model_source
from shoal.node.training.checkpoints.snapshot import Snapshot
from shoal.node.training.checkpoints.store import CheckpointStore
from shoal.node.training.pipeline.settings import stage_run
from shoal.node.training.pipeline.stage_choice import choose_stage
from shoal.node.training.pipeline.stage_export import PipelineNote, assembled, local_stages, read_note, write_note
from shoal.node.training.pipeline.stage_loading import load_stage
from shoal.node.training.pipeline.stage_start import PreparedStage, prepared_stage
from shoal.node.training.strategies.settings import strategy_settings
from shoal.node.training.strategies.sync_schedule import SyncSchedule
from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.pipeline.messages import Finish
from shoal.swarm.pipeline.route_choice import best_of, lacking
from shoal.swarm.pipeline.stage_plan import even_plan, named_plan
from shoal.swarm.pipeline.step_book import StepBook
from shoal.swarm.units import whole

ANA, BEN, CLEO = PeerId("ana"), PeerId("ben"), PeerId("cleo")


@pytest.mark.parametrize("layers", range(1, 9))
def test_stages_hold_every_unit_once_and_differ_by_one_layer_at_most(layers: int) -> None:
    for stages in range(1, layers + 1):
        for tied in (False, True):
            plan = even_plan(layers, stages, tied=tied)
            held = [u for k in range(stages) for span in plan.units(k) for u in range(span.start, span.stop)]
            assert sorted(held) == list(range(whole(layers).stop))
            sizes = [
                sum(1 <= u <= layers for s in plan.units(k) for u in range(s.start, s.stop)) for k in range(stages)
            ]
            assert max(sizes) - min(sizes) <= 1


def test_a_head_that_shares_its_matrix_stands_where_the_embedding_stands() -> None:
    plan = even_plan(6, 3, tied=True)
    assert [plan.describe(stage) for stage in range(3)] == ["embed+0:2+head", "2:4", "4:6"]
    assert plan.head_at_home


def test_stages_that_cannot_be_are_refused_with_a_line() -> None:
    with pytest.raises(ValueError, match="4 stages of a model with 3 layers"):
        even_plan(3, 4, tied=False)
    with pytest.raises(ValueError, match="does not begin where the stage before it ends"):
        named_plan(4, ["embed+0:2", "3:4+head"], tied=False)
    with pytest.raises(ValueError, match="holds no layer"):
        named_plan(4, ["embed", "0:4+head"], tied=False)
    with pytest.raises(ValueError, match="does not end with the head"):
        named_plan(4, ["embed+0:2", "2:4"], tied=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": {"stages": 2, "stage": 2}}, "stage is 2; the stages are 0 to 1"),
        ({"pipeline": {"stages": 2, "spans": ["embed+0:3+head"]}}, "spans names 1 stages"),
        ({"pipeline": {"stages": 0}}, "pipeline.stages"),
        ({"pipeline": {"stages": 2, "stagee": 1}}, "did you mean 'stage'"),
        ({"pipeline": {"stages": 2}, "strategy": {"name": "diloco", "interval": "auto"}}, "cannot be auto"),
        ({"pipeline": {"stages": 2}, "name": "x" * 60}, "name is too long"),
    ],
)
def test_a_config_that_cannot_be_names_the_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_config(tmp_path, **changes)


def test_more_stages_than_layers_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 stages of a model with 3 layers"):
        prepared_stage(tiny_config(tmp_path, pipeline={"stages": 5}), 1, tmp_path)


def test_a_stage_may_have_one_replica_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    assert tiny_config(tmp_path, pipeline={"stages": 3}, group={"quorum": 2}).config.group.quorum == 2
    from shoal.node.training.config_file import config_from

    tables = {"name": "x", "data": {"files": ["a"]}, "pipeline": {"stages": 3}}
    assert config_from(tables, tmp_path).config.group.quorum == 1


@pytest.mark.parametrize("tied", [True, False])
def test_a_stage_has_only_its_own_tensors_in_memory(tmp_path: Path, tied: bool) -> None:
    model = weighted_model(tmp_path, tie_word_embeddings=tied)
    source = model_source.resolve(str(model), tmp_path)
    plan = even_plan(3, 3, tied=tied)
    seen: set[str] = set()
    for stage in range(3):
        module = load_stage(json.loads((model / "config.json").read_text()), plan, stage, source, 0)
        held = dict(module.model.named_parameters())
        assert not any(p.is_meta for p in held.values())
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in held.values()), "no mapped file is kept"
        every = sum(p.numel() for p in module.model.parameters()) + sum(b.numel() for b in module.model.buffers())
        assert every <= sum(p.numel() for p in held.values()) + 64
        assert not seen & held.keys()
        seen |= held.keys()
    whole_names = {entry.name for entry in source.manifest.tensors}
    assert seen == whole_names


def test_a_random_stage_is_the_same_at_every_replica_and_another_with_another_seed(tmp_path: Path) -> None:
    def drawn(stage: int, seed: int) -> PreparedStage:
        file = tiny_config(tmp_path, pipeline={"stages": 3}, seed=seed)
        return prepared_stage(file, stage, tmp_path)

    one, same, other = drawn(1, 0), drawn(1, 0), drawn(1, 1)
    assert one.model_hash == same.model_hash != other.model_hash
    assert one.config.name == stage_run("tiny", 1)
    values = parameters_of(one.module)["model.layers.1.mlp.up_proj.weight"]
    assert 0.01 < values.std() < 0.03
    assert drawn(0, 0).data.order.digest
    assert not one.data.order.digest


def test_an_untied_head_begins_as_the_embedding_and_goes_its_own_way(tmp_path: Path) -> None:
    model = weighted_model(tmp_path, tie_word_embeddings=True)
    file = tiny_config(tmp_path, model=str(model), initial="weights", pipeline={"stages": 3, "untie": True})
    first, last = prepared_stage(file, 0, tmp_path), prepared_stage(file, 2, tmp_path)
    embed = parameters_of(first.module)["model.embed_tokens.weight"]
    np.testing.assert_array_equal(parameters_of(last.module)["lm_head.weight"], embed)
    assert json.loads(last.model.texts["config.json"])["tie_word_embeddings"] is False


def test_a_node_takes_the_stage_with_the_fewest_replicas_and_of_two_that_chose_it_one_moves_on() -> None:
    draw = random.Random(0)
    assert choose_stage(BEN, {0: [ANA], 2: [CLEO]}, None, range(3), draw)[0] == 1
    assert choose_stage(ANA, {0: [], 1: [BEN]}, 1, range(2), draw)[0] == 1, "the smallest stays"
    assert choose_stage(BEN, {0: [], 1: [ANA]}, 1, range(2), draw)[0] == 0
    assert choose_stage(BEN, {0: [], 1: [ANA], 2: []}, None, range(1, 3), draw)[0] == 2, "without data never stage 0"


@dataclass
class Candidate:
    peer: PeerId
    stage: int
    outstanding: int
    rtt_s: float


def test_work_goes_where_least_is_outstanding_then_to_the_nearest() -> None:
    near, far = Candidate(ANA, 1, 2, 0.01), Candidate(BEN, 1, 1, 0.3)
    assert best_of([near, far], 1) is far
    far.outstanding = 2
    assert best_of([near, far], 1) is near
    assert best_of([near, far], 1, {ANA}) is far
    assert best_of([near, far], 2) is None
    assert lacking([near, far], (1, 2)) == (2,)


def finish(step: int, *counted: int) -> Finish:
    return Finish(step, counted, 4.0, 2 * len(counted))


def test_a_microbatch_counts_once_however_often_it_comes() -> None:
    book = StepBook()
    assert book.join(ANA, 0) == 0
    assert book.verdict(ANA, 0, 7) == "count"
    book.note(ANA, 7, 2)
    assert book.verdict(ANA, 0, 7) == "repeat"
    assert book.verdict(ANA, 1, 7) == "late"
    book.finish(ANA, finish(0, 7))
    assert book.verdict(ANA, 0, 8) == "late"
    assert book.full
    assert book.close().sequences == 2


def test_what_a_driver_redid_elsewhere_makes_the_step_void() -> None:
    book = StepBook()
    book.join(ANA, 0)
    for microbatch in (1, 2):
        book.note(ANA, microbatch, 2)
    book.finish(ANA, finish(0, 1))
    assert book.close().sequences == 0
    book.advance()
    assert (book.step, book.void) == (1, False)


def test_a_step_waits_for_every_driver_that_takes_part_and_for_nobody_who_left() -> None:
    book = StepBook()
    book.join(ANA, 0)
    book.join(BEN, 0)
    book.finish(ANA, finish(0))
    assert not book.full
    book.leave(BEN)
    assert book.full


def test_a_driver_that_was_away_and_comes_back_within_the_step_has_gone_on_elsewhere() -> None:
    book = StepBook()
    book.join(ANA, 0)
    book.note(ANA, 1, 2)
    book.leave(ANA)
    book.join(ANA, 0)
    book.finish(ANA, finish(0))
    assert book.close().sequences == 0


def test_a_replica_goes_to_a_later_step_only_when_nobody_needs_it_here() -> None:
    book = StepBook()
    book.join(ANA, 0)
    book.note(ANA, 1, 2)
    assert book.join(BEN, 5) == 0
    assert book.join(ANA, 5) == 5, "it has gone on without this replica"
    assert book.join(BEN, 5) == 5
    assert book.stale, "what Ana's step left behind is thrown away"


@pytest.mark.parametrize("name", ["sync", "diloco", "streaming", "sparse", "cocktail"])
def test_rounds_are_due_at_the_same_steps_wherever_one_began_to_count(name: str) -> None:
    schedule = SyncSchedule.of(strategy_settings(name))
    regular = {schedule.offered_after(round_) for round_ in range(40)}
    for clock in range(min(regular), max(regular)):
        assert clock + schedule.left(clock) in regular
        assert (schedule.left(clock) == 0) == (clock in regular)


def test_stages_are_put_together_from_their_checkpoints_or_the_missing_ones_named(tmp_path: Path) -> None:
    file = tiny_config(tmp_path, pipeline={"stages": 3})
    run, expected = tmp_path / "run", {}
    for stage in range(3):
        ready = prepared_stage(file, stage, tmp_path)
        folder = run / f"stage-{stage}"
        write_note(folder, PipelineNote("tiny", 3, file.config.model, ready.model.config))
        expected |= parameters_of(ready.module)
        if stage == 2:
            continue
        state = {"outer.values": ready.parameters.read(), "outer.rounds": 1}
        layout = ready.parameters.layout
        CheckpointStore(folder / "checkpoints").save(Snapshot.of("run", 1, bytes(32), layout, state))
    note = read_note(run)
    assert note is not None
    with pytest.raises(UsageError, match="no checkpoint of stage 2 of tiny"):
        assembled(local_stages(run, note), note)
    third = prepared_stage(file, 2, tmp_path)
    state = {"outer.values": third.parameters.read(), "outer.rounds": 1}
    snapshot = Snapshot.of("run", 1, bytes(32), third.parameters.layout, state)
    found = assembled({**local_stages(run, note), 2: snapshot}, note)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
