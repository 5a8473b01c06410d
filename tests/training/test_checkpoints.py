"""Checkpoints: the same state comes back, damage is told and passed over, a full disk leaves the old one alone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from training.full_disk import files_up_to

from shoal.node.training.checkpoints.checkpoint_manifest import MANIFEST
from shoal.node.training.checkpoints.reader import latest, load, saved_checkpoints
from shoal.node.training.checkpoints.retention import Retention
from shoal.node.training.checkpoints.snapshot import Snapshot, Value
from shoal.node.training.checkpoints.store import CheckpointStore
from shoal.node.training.checkpoints.tensor_file import read_arrays, write_arrays
from shoal.node.training.optimizers.outer import OuterSettings
from shoal.node.training.parameter_layout import ParameterLayout
from shoal.node.training.strategies.outer_parameters import OuterParameters
from shoal.swarm.errors import OutOfMemory, UsageError
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.transfer.block_transfer_folder import BlockFolder
from shoal.swarm.transfer.block_transfer_listing import read_listing

LAYOUT = ParameterLayout.of({"embed.weight": (40, 8), "layers.0.up.weight": (8, 8), "norm.weight": (8,)})
SPEC = RunSpec("test", "model", "data", "diloco", (LAYOUT.count,), "none", shards=1)


def outer(seed: int) -> OuterParameters:
    draw = np.random.default_rng(seed)
    made = OuterParameters(OuterSettings(), SPEC, draw.normal(size=LAYOUT.count).astype(np.float32))
    made.optimizer.step(made.values, 0, draw.normal(size=LAYOUT.count).astype(np.float32))
    made.rounds = seed
    return made


def snapshot(round_: int, seed: int | None = None, peer: int = 0) -> Snapshot:
    """What a trainer saves; the shared part depends on the seed alone."""
    held = outer(round_ if seed is None else seed)
    draw = np.random.default_rng(1000 + peer)
    strategy: dict[str, Value] = {f"outer.{name}": value for name, value in held.state().items()}
    strategy |= {"step": 30 * round_ + peer, "residual.0": draw.normal(size=LAYOUT.count).astype(np.float32)}
    inner: dict[str, Value] = {"first.0": draw.normal(size=(3, 4)), "steps": int(np.int64(7)), "scalar": np.array(3.5)}
    position = {"epoch": peer, "sample": 12345678901234, "files": ["a.txt"], "share": 0.1}
    return Snapshot.of("run", round_, held.hash(), LAYOUT, strategy, inner, position)


def same(one: dict[str, Value], other: dict[str, Value]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) and np.asarray(one[name]).dtype == np.asarray(other[name]).dtype
        for name in one
    )


def test_what_was_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    saved = snapshot(7)
    CheckpointStore(tmp_path).save(saved)
    found = latest(tmp_path)
    assert found is not None
    back = found.snapshot
    assert (back.run, back.round, back.state, found.refused) == (saved.run, 7, saved.state, ())
    assert same(back.strategy_state, saved.strategy_state)
    assert dict(back.inner).keys() == dict(saved.inner).keys()
    assert np.array_equal(back.inner["first.0"], saved.inner["first.0"])
    assert back.inner["steps"] == 7
    assert np.asarray(back.inner["scalar"]).shape == ()
    assert back.position == saved.position
    again = OuterParameters(OuterSettings(), SPEC, np.zeros(LAYOUT.count, np.float32))
    again.restore(back.outer_state)
    assert again.hash() == saved.state


def test_the_parameters_lie_in_a_file_that_others_can_read(tmp_path: Path) -> None:
    saved = CheckpointStore(tmp_path).save(snapshot(1))
    tensors = load_file(saved.folder / "model.safetensors")
    assert {name: array.shape for name, array in tensors.items()} == {p.name: p.shape for p in LAYOUT.places}
    assert np.array_equal(tensors["norm.weight"], snapshot(1).parameters["norm.weight"])


def test_the_shared_part_has_the_same_name_at_all_peers_and_the_whole_does_not(tmp_path: Path) -> None:
    one, two = CheckpointStore(tmp_path / "one"), CheckpointStore(tmp_path / "two")
    first, second = one.save(snapshot(5, peer=1)), two.save(snapshot(5, peer=2))
    assert [offer[0] for offer in one.offers()] == [offer[0] for offer in two.offers()]
    assert first.name != second.name
    assert one.offers()[0][0] != CheckpointStore(tmp_path / "three").save(snapshot(5, seed=6)).name


def test_the_newest_comes_first_and_the_initial_one_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for round_ in (-1, 9, 10):
        store.save(snapshot(round_, seed=round_ + 1))
    assert [saved.round for saved in saved_checkpoints(tmp_path)] == [10, 9, -1]
    assert saved_checkpoints(tmp_path)[-1].name.startswith("initial-")


@pytest.mark.parametrize("file", ["model.safetensors", "outer.safetensors", "inner.safetensors", MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "grown"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, file: str, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(snapshot(1))
    newest = store.save(snapshot(2))
    path = newest.folder / file
    data = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "flipped":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "removed":
            path.unlink()
        case _:
            path.write_bytes(data + b" ")
    found = latest(tmp_path)
    assert found is not None
    assert found.snapshot.round == 1
    assert len(found.refused) == 1
    assert newest.name in found.refused[0]
    assert "\n" not in found.refused[0]


def test_when_none_can_be_used_the_line_says_why(tmp_path: Path) -> None:
    saved = CheckpointStore(tmp_path).save(snapshot(1))
    (saved.folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UsageError, match=r"no checkpoint in .* can be used: .*model.safetensors has 5 bytes"):
        latest(tmp_path)


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None
    assert latest(tmp_path) is None


def test_a_damaged_checkpoint_is_written_anew(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    saved = store.save(snapshot(1))
    (saved.folder / "model.safetensors").write_bytes(b"short")
    again = store.save(snapshot(1))
    assert again.name == saved.name
    assert load(again).round == 1


@pytest.mark.parametrize("room", [0, 100, 900])
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path, room: int) -> None:
    store = CheckpointStore(tmp_path)
    old = store.save(snapshot(1))
    with files_up_to(room), pytest.raises(OutOfMemory, match="cannot write a checkpoint to"):
        store.save(snapshot(2))
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    found = latest(tmp_path)
    assert found is not None
    assert (found.snapshot.round, found.refused) == (1, ())
    assert store.save(snapshot(2)).round == 2


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))  # noqa: SLF001
    with pytest.raises(OutOfMemory, match=r"does not fit: .* has 1.0 MB free"):
        store.save(snapshot(2))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_swept_at_the_next_start(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(snapshot(1))
    (tmp_path / ".partial-abc").mkdir()
    (tmp_path / ".partial-abc" / "model.safetensors").write_bytes(b"half of it")
    CheckpointStore(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


_WRITER = """
import sys
from pathlib import Path
from training.test_checkpoints import snapshot
from shoal.node.training.checkpoints.store import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
for round_ in range(1, 100000):
    store.save(snapshot(round_))
    print(round_, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 4])
def test_kill_9_at_any_instant_leaves_a_checkpoint_that_can_be_used(tmp_path: Path, lines: int) -> None:
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(lines)]
    time.sleep(0.0007 * lines)  # into the middle of the next one
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    found = latest(tmp_path)
    assert found is not None
    assert found.snapshot.round >= said[-1]
    assert not found.refused


def test_the_last_ones_and_every_tenth_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Retention(last=2, every=10))
    for round_ in (8, 10, 12, 20, 21, 22, 23):
        store.save(snapshot(round_))
    assert [saved.round for saved in saved_checkpoints(tmp_path)] == [23, 22, 20, 10]
    assert [about.round for _, about, _ in store.offers()] == [23, 22, 20, 10]


def test_one_that_a_joiner_is_taking_is_spared_once(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Retention(last=1))
    store.save(snapshot(1))
    bundle = store.offers()[0][0]
    assert store.find(bundle) is not None
    store.save(snapshot(2))
    assert store.find(bundle) is not None, "still being asked for"
    store.save(snapshot(3))
    store.save(snapshot(4))
    assert store.find(bundle) is None
    assert [saved.round for saved in saved_checkpoints(tmp_path)] == [4]


@given(st.sets(st.integers(0, 300), min_size=1), st.integers(1, 5), st.integers(0, 20))
def test_what_is_kept_is_the_newest_and_the_multiples(rounds: set[int], last: int, every: int) -> None:
    gone = set(Retention(last, every).superfluous(sorted(rounds)))
    kept = rounds - gone
    assert set(sorted(rounds)[-last:]) <= kept
    assert all(r in set(sorted(rounds)[-last:]) or (every and r % every == 0) for r in kept)
    assert all(not every or r % every for r in gone)


def test_a_checkpoint_of_others_is_adopted_without_an_own_part(tmp_path: Path) -> None:
    donor, joiner = CheckpointStore(tmp_path / "donor"), CheckpointStore(tmp_path / "joiner")
    donor.save(snapshot(4))
    bundle, _, _ = donor.offers()[0]
    held = donor.find(bundle)
    assert held is not None
    listing = read_listing(held.listing, bundle)
    into = BlockFolder(joiner.incoming(bundle), listing)
    into.prepare()
    for name, part in held.files.items():
        into.store(name, 0, part.path.read_bytes())
    adopted = joiner.adopt(into.folder, listing)
    back = load(adopted)
    assert not back.is_own
    assert same(back.outer_state, snapshot(4).outer_state)
    assert joiner.offers() == donor.offers(), "and the joiner can give it on"
    assert [path.name for path in (tmp_path / "joiner").iterdir()] == [adopted.name]


@pytest.mark.parametrize("wrong", [{"a": "text"}, {"a": None}, {"a": [1]}])
def test_a_state_that_no_file_can_hold_is_refused(tmp_path: Path, wrong: dict[str, Value]) -> None:
    good = snapshot(1)
    with pytest.raises(ValueError, match="neither an array nor a number"):
        CheckpointStore(tmp_path).save(Snapshot(good.run, 1, good.state, good.parameters, good.strategy, inner=wrong))
    assert not list(tmp_path.iterdir())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["f4", "f8", "i8", "u1", "?", ">f4"]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_arrays_of_any_shape_come_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[str, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "some.safetensors"
    arrays = {
        f"t{i}": np.random.default_rng(i).integers(0, 2, size=tuple(shape)).astype(kind)
        for i, (kind, shape) in enumerate(kinds)
    }
    file = write_arrays(path, arrays)
    back = read_arrays(path)
    assert file.size_bytes == path.stat().st_size
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[name], arrays[name]) and back[name].shape == arrays[name].shape for name in back)
