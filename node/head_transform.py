"""What a model does around its layers beyond embedding and matrix: factors, logit scales, soft caps.

Read from the model's own code: its forward is run on a probe with decoder, layers or head taken away, and what it
does to the probe must be nothing, a factor, or the soft cap of its configuration. So no family's extra step is
forgotten silently.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from shoal.swarm.errors import UsageError

from .model_skeleton import Skeleton
from .transformers_imports import import_quickly

_CLOSE = 1e-4


class _Fixed(nn.Module):
    """Returns the same thing whatever comes in."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self._value = value

    def forward(self, *_: object, **__: object) -> object:
        return self._value


def logit_transform(skeleton: Skeleton) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What turns the head's product into logits; None: nothing.

    raises: UsageError when it is neither a factor nor a soft cap
    """
    probe = torch.linspace(-80.0, 80.0, skeleton.config.vocab_size).view(1, 1, -1)
    hidden = torch.zeros(1, 1, skeleton.config.hidden_size)
    given = import_quickly("transformers.modeling_outputs").MoeModelOutputWithPast(last_hidden_state=hidden)
    replaced: dict[nn.Module, nn.Module] = {skeleton.model.base_model: _Fixed(given), skeleton.head: _Fixed(probe)}
    with _replaced(skeleton.model, replaced):
        out = _run(skeleton, lambda: skeleton.model.forward(inputs_embeds=hidden).logits)
    factor = _factor(probe, out)
    if factor is not None:
        return None if factor == 1.0 else lambda logits: logits * factor
    cap = getattr(skeleton.config, "final_logit_softcapping", None)
    if cap and torch.allclose(out, torch.tanh(probe / cap) * cap, atol=_CLOSE):
        return lambda logits: torch.tanh(logits / cap) * cap
    raise UsageError(f"{type(skeleton.model).__name__} treats its logits in a way that shoal does not know")


def embedding_factor(skeleton: Skeleton) -> float:
    """raises: UsageError when the model does more to its embeddings than scale them"""
    base = skeleton.model.base_model
    probe = torch.linspace(-2.0, 2.0, skeleton.config.hidden_size).view(1, 1, -1)
    replaced = {skeleton.embed: _Fixed(probe), skeleton.layers: nn.ModuleList(), skeleton.norm: nn.Identity()}
    with _replaced(base, replaced):
        out = _run(skeleton, lambda: base.forward(input_ids=torch.zeros(1, 1, dtype=torch.long)).last_hidden_state)
    factor = _factor(probe, out)
    if factor is None:
        raise UsageError(f"{type(skeleton.model).__name__} treats its embeddings in a way that shoal does not know")
    return factor


def _run(skeleton: Skeleton, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
    try:
        with torch.inference_mode():
            return forward()
    except (TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError, NotImplementedError) as error:
        name = type(skeleton.model).__name__
        raise UsageError(f"{name} cannot be split into embed, layers and head: {error}") from error


def _factor(probe: torch.Tensor, out: torch.Tensor) -> float | None:
    if out.shape != probe.shape:
        return None
    if torch.equal(out, probe):
        return 1.0
    factor = float(out.flatten()[-1] / probe.flatten()[-1])
    return factor if torch.allclose(out, probe * factor, atol=_CLOSE) else None


@contextmanager
def _replaced(root: nn.Module, replaced: dict[nn.Module, nn.Module]) -> Iterator[None]:
    """Direct children of `root` stand aside for others."""
    names = {name: child for name, child in root.named_children() if child in replaced}
    for name, child in names.items():
        setattr(root, name, replaced[child])
    try:
        yield
    finally:
        for name, child in names.items():
            setattr(root, name, child)
