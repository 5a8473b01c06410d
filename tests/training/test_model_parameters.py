import copy

import numpy as np
import pytest
import torch
from torch import nn

from shoal.node.training.optimizers.inner import InnerOptimizer
from shoal.node.training.optimizers.inner_settings import InnerSettings
from shoal.node.training.optimizers.schedules import Schedule
from shoal.node.training.parameter_layout import ParameterLayout
from shoal.node.training.parameters import ModelParameters


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16, bias=False)
        self.down = nn.Linear(16, 8, bias=False)
        self.norm = nn.Parameter(torch.ones(8))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = hidden + self.down(torch.relu(self.up(hidden * self.norm)))
        return result


class Small(nn.Module):
    """Registered in an odd order, with a tied head and a frozen tensor."""

    def __init__(self, layers: int = 11) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(8))
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.embed_tokens = nn.Embedding(32, 8)
        self.lm_head = nn.Linear(8, 32, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        result: torch.Tensor = self.lm_head(hidden * self.norm)
        return result


def test_the_order_is_embedding_then_layers_by_number_then_the_rest() -> None:
    torch.manual_seed(0)
    model = Small()
    layout = ModelParameters(model).layout
    names = [place.name for place in layout.places]
    assert names[0] == "embed_tokens.weight"
    assert names[1:4] == ["layers.0.down.weight", "layers.0.norm", "layers.0.up.weight"]
    assert [name for name in names if name.endswith("up.weight")] == [f"layers.{i}.up.weight" for i in range(11)]
    assert names[-1] == "norm"
    assert layout.count == sum(p.numel() for p in model.parameters() if p.requires_grad)
    shapes = {place.name: place.shape for place in layout.places}
    assert ParameterLayout.of(dict(reversed(shapes.items()))) == layout


def test_what_is_read_can_be_written_into_another_model_whole_or_in_part() -> None:
    torch.manual_seed(0)
    first, second = Small(), Small()
    ours, theirs = ModelParameters(first), ModelParameters(second)
    start, stop = layer_bounds(ours.layout, 3)
    theirs.write(start, ours.read(start, stop))
    assert torch.equal(second.layers[3].up.weight, first.layers[3].up.weight)  # type: ignore[union-attr,arg-type]
    assert not torch.equal(second.layers[4].up.weight, first.layers[4].up.weight)  # type: ignore[union-attr,arg-type]
    theirs.write(0, ours.read())
    ids = torch.arange(32)[None]
    assert torch.equal(first(ids), second(ids))
    with pytest.raises(ValueError, match="whole tensors"):
        ours.read(1)
    with pytest.raises(ValueError, match="whole tensors"):
        ours.write(0, np.zeros(5, np.float32))
    read = ours.read()
    read[:] = 0
    assert float(first.norm.detach().sum()) == 8  # a copy, not a view


def layer_bounds(layout: ParameterLayout, layer: int) -> tuple[int, int]:
    places = [place for place in layout.places if place.name.startswith(f"layers.{layer}.")]
    return places[0].start, places[-1].stop


def test_gradients_lie_where_their_parameters_do() -> None:
    torch.manual_seed(0)
    model = Small(2)
    parameters = ModelParameters(model)
    np.testing.assert_array_equal(parameters.gradients(), np.zeros(parameters.layout.count, np.float32))
    model(torch.arange(32)[None]).square().mean().backward()
    found = parameters.layout.tensors(parameters.gradients())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            np.testing.assert_array_equal(found[name], parameter.grad.numpy())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 13])
def test_fragments_are_whole_layers_and_about_even(count: int) -> None:
    layout = ModelParameters(Small()).layout
    fragments = layout.fragments(count)
    assert len(fragments) == count
    assert sum(fragments) == layout.count
    start = 0
    for size in fragments:
        groups = {place.group for place in layout.within(start, start + size)}
        others = {place.group for place in layout.places} - groups
        assert groups
        assert all(place.group in groups for place in layout.within(start, start + size))
        assert not groups & others
        start += size
    if count <= 5:
        assert max(fragments) <= layout.count / count + 600  # a layer has 264 values, the embedding 256
    with pytest.raises(ValueError, match="fragments"):
        layout.fragments(14)


def test_a_models_hash_changes_with_config_names_and_values() -> None:
    model = Small(1)
    parameters = ModelParameters(model)
    layout, values = parameters.layout, parameters.read()
    other = ParameterLayout.of({place.name + ".x": place.shape for place in layout.places})
    moved = values.copy()
    moved[-1] = np.nextafter(moved[-1], np.float32(9))
    hashes = {
        layout.model_hash({"a": 1}, values),
        layout.model_hash({"a": 2}, values),
        layout.model_hash({"a": 1}, moved),
        other.model_hash({"a": 1}, values),
    }
    assert len(hashes) == 4
    assert layout.model_hash({"b": 1, "a": 2}, values) == layout.model_hash({"a": 2, "b": 1}, values)


def test_parameters_that_are_not_float32_or_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        ModelParameters(nn.Linear(2, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="nothing to train"):
        ModelParameters(nn.Linear(2, 2).requires_grad_(requires_grad=False))


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_every_inner_optimiser_learns_and_goes_on_from_its_state(kind: str) -> None:
    def steps(model: Small, optimizer: InnerOptimizer, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            ids = torch.randint(0, 32, (8, 16), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(ids).reshape(-1, 32), ids.reshape(-1))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.clip()
            optimizer.step(step)
            losses.append(float(loss))
        return losses

    settings = InnerSettings(
        kind=kind,  # type: ignore[arg-type]
        learning_rate=0.5 if kind == "sgd" else 0.01,
        schedule=Schedule("cosine", warmup=5, total=60),
    )
    torch.manual_seed(0)
    model = Small(2)
    optimizer = InnerOptimizer(settings, model.named_parameters())
    losses = steps(model, optimizer, 0, 30)
    assert losses[-1] < 0.8 * losses[0]
    other = Small(2)
    other.load_state_dict(model.state_dict())
    resumed = InnerOptimizer(settings, other.named_parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert steps(other, resumed, 30, 40) == steps(model, optimizer, 30, 40)


def test_muon_takes_the_matrices_of_layers_and_adamw_the_rest() -> None:
    optimizer = InnerOptimizer(InnerSettings(kind="muon"), Small(2).named_parameters())
    muon, adamw = (
        sorted({tuple(p.shape) for group in inner.param_groups for p in group["params"]})
        for inner in optimizer.optimizers
    )
    assert muon == [(8, 16), (16, 8)]
    assert adamw == [(8,), (32, 8)]
    with pytest.raises(ValueError, match="optimiser states"):
        InnerOptimizer(InnerSettings(), Small(2).named_parameters()).load_state_dict(optimizer.state_dict())


def test_clipping_bounds_the_gradients_norm_and_tells_what_it_was() -> None:
    model = nn.Linear(4, 1, bias=False)
    model.weight.grad = torch.full((1, 4), 3.0)
    optimizer = InnerOptimizer(InnerSettings(clip=1.0), model.named_parameters())
    assert optimizer.clip() == pytest.approx(6.0)
    assert float(model.weight.grad.norm()) == pytest.approx(1.0, rel=1e-4)
    optimizer = InnerOptimizer(InnerSettings(clip=0.0), model.named_parameters())
    assert optimizer.clip() == pytest.approx(1.0, rel=1e-4)
