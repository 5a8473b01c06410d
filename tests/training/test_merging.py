"""Merging models: the formulas, checked against plain ones in float64; one tensor at a time; strangers are refused."""

import json
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from node.tiny_models import make_model, save_model
from safetensors.torch import load_file, save_file
from training.full_disk import files_up_to

from shoal.node.model_source import LocalModel, from_folder
from shoal.node.training.merging import Average, Merge, Slerp, TaskArithmetic
from shoal.node.training.merging_models import merge_models
from shoal.swarm.errors import OutOfMemory, UsageError

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def drawn(seed: int, shape: tuple[int, ...] = (7, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(tensor: torch.Tensor) -> Array:
    made: Array = tensor.double().numpy()
    return made


def close(found: torch.Tensor, wanted: Array) -> bool:
    return bool(np.abs(exact(found) - wanted).max() <= 4e-7 * np.abs(wanted).max())


def copies(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0), (1.0, 2.0, 5.0), (0.5, -0.1, 0.6)])
def test_an_average_is_the_weighted_mean(weights: tuple[float, ...]) -> None:
    tensors = [drawn(i) for i in range(3)]
    plain = np.average([exact(t) for t in tensors], axis=0, weights=weights or None)
    assert close(Average(weights)(copies(*tensors), None), plain)


@pytest.mark.parametrize("weights", [(), (0.3, 0.9), (-1.0, 0.5)])
def test_task_arithmetic_adds_what_each_model_has_learned(weights: tuple[float, ...]) -> None:
    base, one, two = (drawn(i) for i in range(3))
    first, second = weights or (1.0, 1.0)
    plain = exact(base) + first * (exact(one) - exact(base)) + second * (exact(two) - exact(base))
    assert close(TaskArithmetic(weights)(copies(one, two), base.clone()), plain)


def test_task_arithmetic_with_one_model_and_weight_1_is_that_model() -> None:
    base, one = drawn(0), drawn(1)
    assert close(TaskArithmetic()(copies(one), base), exact(one))


@pytest.mark.parametrize("at", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_slerp_goes_along_the_arc(at: float) -> None:
    one, two = drawn(1), drawn(2)
    a, b = exact(one).ravel(), exact(two).ravel()
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    plain = (np.sin((1 - at) * angle) * exact(one) + np.sin(at * angle) * exact(two)) / np.sin(angle)
    assert close(Slerp(at)(copies(one, two), None), plain)


def test_slerp_keeps_the_length_of_unit_vectors_where_an_average_does_not() -> None:
    one, two = (t / t.norm() for t in (drawn(1), drawn(2)))
    assert float(Slerp(0.5)(copies(one, two), None).norm()) == pytest.approx(1.0, abs=1e-6)
    assert float(Average()(copies(one, two), None).norm()) < 0.95


def test_slerp_of_parallel_and_of_zero_tensors_is_a_line() -> None:
    one = drawn(1)
    assert close(Slerp(0.25)(copies(one, 3 * one), None), exact(one) * (0.75 + 0.25 * 3))
    assert close(Slerp(0.25)(copies(one, torch.zeros_like(one)), None), exact(one) * 0.75)
    assert torch.equal(Slerp(0.5)(copies(torch.zeros(3), torch.zeros(3)), None), torch.zeros(3))


@pytest.mark.parametrize(
    ("merge", "models", "base", "line"),
    [
        (Average(), 1, False, "at least two models"),
        (Average((1.0,)), 2, False, "1 weights for 2 models"),
        (Average((1.0, -1.0)), 2, False, "sum to more than zero"),
        (Average((1.0, float("nan"))), 2, False, "numbers up to"),
        (Average(), 2, True, "an average has no base"),
        (TaskArithmetic(), 2, False, "wants --base"),
        (Slerp(), 3, False, "exactly two models"),
        (Slerp(1.5), 2, False, "goes from 0 to 1"),
    ],
)
def test_what_cannot_be_merged_so_is_told(merge: Merge, models: int, base: bool, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        merge.check(models, base=base)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Tiny Llamas as folders, by seed."""
    made: dict[tuple[object, ...], Path] = {}

    def folder(seed: int, name: str = "llama", **changes: object) -> Path:
        key = (seed, name, *sorted(changes.items()))
        if key not in made:
            place = tmp_path_factory.mktemp("tiny") / f"{name}-{seed}"
            made[key] = save_model(make_model(name, seed, **(SMALL | changes)), place)
        return made[key]

    return folder


def model(folder: Path, cache: Path) -> LocalModel:
    return from_folder(folder, cache, folder.name)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_merged_model_is_the_average_of_every_tensor_and_can_be_served(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    one, two = model(tiny(1), tmp_path), model(tiny(2), tmp_path)
    seen: list[tuple[int, int]] = []
    merge_models([one, two], tmp_path / "out", Average((1.0, 3.0)), progress=lambda *at: seen.append(at))
    merged, first, second = (weights(folder) for folder in (tmp_path / "out", one.folder, two.folder))
    assert merged.keys() == first.keys()
    for name, tensor in merged.items():
        assert close(tensor, 0.25 * exact(first[name]) + 0.75 * exact(second[name])), name
    assert seen == [(i + 1, len(merged)) for i in range(len(merged))]
    back = model(tmp_path / "out", tmp_path)
    assert back.manifest.architecture == one.manifest.architecture
    assert back.model_id not in (one.model_id, two.model_id)
    assert json.loads(back.text_file("config.json")) == json.loads(one.text_file("config.json"))


def test_task_arithmetic_and_slerp_over_whole_models(tiny: Callable[..., Path], tmp_path: Path) -> None:
    base, one, two = (model(tiny(seed), tmp_path) for seed in (1, 2, 3))
    merge_models([one, two], tmp_path / "task", TaskArithmetic((0.5, 0.25)), base)
    merge_models([one, two], tmp_path / "slerp", Slerp(0.3))
    b, o, t = (weights(m.folder) for m in (base, one, two))
    task, slerp = weights(tmp_path / "task"), weights(tmp_path / "slerp")
    for name in task:
        assert close(task[name], 0.25 * exact(b[name]) + 0.5 * exact(o[name]) + 0.25 * exact(t[name])), name
        assert torch.equal(slerp[name], Slerp(0.3)(copies(o[name], t[name]), None)), name


def test_several_files_and_half_precision_are_kept_as_they_are(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folders = []
    for seed in (1, 2):
        made = make_model("llama", seed, **SMALL).to(torch.bfloat16)
        made.save_pretrained(tmp_path / f"half{seed}", max_shard_size="20KB")
        folders.append(model(tmp_path / f"half{seed}", tmp_path))
    merge_models(folders, tmp_path / "out", Average())
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert names == sorted(path.name for path in folders[0].folder.glob("*.safetensors"))
    assert len(names) > 1
    for name in names:
        merged, first, second = (load_file(f / name) for f in (tmp_path / "out", *(m.folder for m in folders)))
        for key, tensor in merged.items():
            assert tensor.dtype == torch.bfloat16
            wanted = ((first[key].float() + second[key].float()) / 2).bfloat16()
            assert torch.equal(tensor, wanted), key
    assert model(tmp_path / "out", tmp_path).manifest.dtype == "bfloat16"


class Watching(Average):
    """Sees whether what it was given before is still in memory."""

    seen: list[weakref.ref[torch.Tensor]] = []  # noqa: RUF012  a class of one test

    def __call__(self, tensors: Sequence[torch.Tensor], base: torch.Tensor | None) -> torch.Tensor:
        assert all(reference() is None for reference in self.seen), "tensors of before are still held"
        self.seen[:] = [weakref.ref(tensor) for tensor in tensors]
        return super().__call__(tensors, base)


def test_one_tensor_at_a_time_is_in_memory(tiny: Callable[..., Path], tmp_path: Path) -> None:
    merge_models([model(tiny(1), tmp_path), model(tiny(2), tmp_path)], tmp_path / "out", Watching())
    assert len(Watching.seen) == 2


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("qwen2", {}, "one is a LlamaForCausalLM, the other a Qwen2ForCausalLM"),
        ("llama", {"vocab_size": 223}, "a vocabulary of 211 tokens, the other of 223"),
        ("llama", {"num_hidden_layers": 3}, "only llama-2 has the tensor model.layers.2"),
        ("llama", {"intermediate_size": 64}, "mlp.down_proj.weight has another shape in each"),
        ("llama", {"rms_norm_eps": 1e-3}, "rms_norm_eps is 1e-06 in one config.json and 0.001 in the other"),
    ],
)
def test_models_that_do_not_fit_together_are_refused_with_the_reason(
    tiny: Callable[..., Path], tmp_path: Path, name: str, changes: dict[str, object], line: str
) -> None:
    models = [model(tiny(1), tmp_path), model(tiny(2, name, **changes), tmp_path)]
    with pytest.raises(UsageError, match=line):
        merge_models(models, tmp_path / "out", Average())
    assert not (tmp_path / "out").exists()


def tokenizer(words: Sequence[str]) -> str:
    return json.dumps(
        {"model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}}, "added_tokens": []}
    )


def test_other_words_under_the_same_numbers_are_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folders = []
    for seed, words in ((1, ["a", "b"]), (2, ["b", "a"])):
        shutil.copytree(tiny(seed), tmp_path / f"m{seed}")
        (tmp_path / f"m{seed}" / "tokenizer.json").write_text(tokenizer(words))
        folders.append(model(tmp_path / f"m{seed}", tmp_path))
    with pytest.raises(UsageError, match="their tokenizers have different vocabularies"):
        merge_models(folders, tmp_path / "out", Average())


def test_a_merge_that_overflows_is_refused_and_leaves_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    models = []
    for seed in (1, 2):
        make_model("llama", seed, **SMALL).to(torch.float16).save_pretrained(tmp_path / f"half{seed}")
        models.append(model(tmp_path / f"half{seed}", tmp_path))
    with pytest.raises(UsageError, match="becomes infinite or NaN"):
        merge_models(models, tmp_path / "out", TaskArithmetic((1e6, 1e6)), models[0])
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_an_existing_folder_is_not_written_into(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        merge_models([model(tiny(1), tmp_path), model(tiny(2), tmp_path)], tmp_path / "out", Average())


def test_a_full_disk_leaves_no_half_of_a_model(tiny: Callable[..., Path], tmp_path: Path) -> None:
    models = [model(tiny(1), tmp_path), model(tiny(2), tmp_path)]
    with files_up_to(20_000), pytest.raises(OutOfMemory, match="cannot write"):
        merge_models(models, tmp_path / "out", Average())
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_whole_numbers_are_kept_when_equal_and_refused_when_not(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folders = []
    for seed, number in ((1, 5), (2, 5), (3, 6)):
        shutil.copytree(tiny(seed), tmp_path / f"m{seed}")
        path = tmp_path / f"m{seed}" / "model.safetensors"
        save_file({**load_file(path), "model.steps": torch.tensor([number])}, path, {"format": "pt"})
        folders.append(model(tmp_path / f"m{seed}", tmp_path))
    merge_models(folders[:2], tmp_path / "same", Average())
    assert weights(tmp_path / "same")["model.steps"].tolist() == [5]
    with pytest.raises(UsageError, match=r"model\.steps holds whole numbers that differ"):
        merge_models(folders, tmp_path / "other", Average())
