"""Parts of models that are loaded on several threads at once are those that are loaded one after the other."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from node.engine_chain import CPU, local_model
from node.tiny_models import make_model, save_model
from torch import nn

from shoal.node.attention_plan import Piece
from shoal.node.manifest_builder import parse_config
from shoal.node.model_skeleton import _parameters_on_meta, build_skeleton
from shoal.node.shard import Shard
from shoal.swarm.units import whole


def test_what_other_threads_load_while_a_model_is_built_keeps_its_numbers() -> None:
    with ThreadPoolExecutor(1) as beside, _parameters_on_meta(torch.float32):
        here = nn.Linear(2, 2)
        there = beside.submit(nn.Linear, 2, 2).result(10)
    assert here.weight.is_meta
    assert not there.weight.is_meta


def test_threads_that_build_and_load_at_once_do_not_mix(tmp_path: Path) -> None:
    folders = [save_model(make_model(family), tmp_path / family) for family in ("llama", "gemma2", "qwen3")]
    models = [local_model(folder, tmp_path / "cache") for folder in folders]

    def logits(number: int) -> torch.Tensor:
        model = models[number]
        shard = Shard.load(model, whole(model.manifest.layers), "float32", CPU)
        cache = shard.new_cache(64)
        plan = shard.plan(cache, (Piece(cache.reserve(3), 0, 3),))
        return shard.run(shard.span, torch.tensor([3, 1, 4]), plan, (2,))

    expected = [logits(number) for number in range(len(models))]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(logits, [0, 1, 2] * 3))
        config = parse_config(models[0].text_file("config.json"), "config.json")
        built = list(threads.map(lambda _: build_skeleton(config, torch.float32), range(3)))
    assert all(torch.equal(each, expected[number % 3]) for number, each in enumerate(found))
    assert all(parameter.is_meta for skeleton in built for parameter in skeleton.model.parameters())
    assert not nn.Linear(2, 2).weight.is_meta
