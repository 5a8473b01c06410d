"""The part of a transformers model that one stage trains: the model itself, with everything else taken out of it.

Masks, rotary embeddings and whatever a family does between its layers stay transformers' own; so a row of stages
computes what the whole model computes, operation for operation. Parameters keep the names that they have in the whole.

Shapes: B sequences of S tokens, D hidden, V vocabulary.
"""
# ruff: noqa: N803  names end in their shapes, as the legend above says

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from shoal.node.head_transform import embedding_factor, logit_transform
from shoal.node.model_skeleton import Skeleton
from shoal.swarm.errors import UsageError
from shoal.swarm.units import Span, has_embed, has_head, layer_range

_PLAIN = (str, int, float, bool, type(None))


class _Skipped(nn.Module):
    """Stands for a layer that another stage holds."""

    def __init__(self, layer: nn.Module, wraps: bool) -> None:
        super().__init__()
        self.__dict__.update({k: v for k, v in vars(layer).items() if isinstance(v, _PLAIN) and k not in self.__dict__})
        self._wraps = wraps

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> Any:  # noqa: ANN401  as the family's layers
        return (hidden,) if self._wraps else hidden


class StageModule:
    """units: spans that this stage holds; the skeleton's parameters of these are loaded already, the others are on meta

    raises: UsageError for a family that cannot be cut
    """

    def __init__(self, skeleton: Skeleton, units: Sequence[Span]) -> None:
        self.model = skeleton.model
        layers = len(skeleton.layers)
        self.has_embed = any(has_embed(span) for span in units)
        self.has_head = any(has_head(span, layers) for span in units)
        self._base = skeleton.model.base_model
        self._factor = embedding_factor(skeleton)
        self._logits: Callable[[torch.Tensor], torch.Tensor] | None = None
        if self.has_head:
            self._logits = logit_transform(skeleton)
        held = {index for span in units for index in layer_range(span, layers)}
        wraps = _wraps(skeleton)
        for index in set(range(layers)) - held:
            skeleton.layers[index] = _Skipped(skeleton.layers[index], wraps)
        self._norm, self._head = skeleton.norm, skeleton.head
        self._norm_forward = type(skeleton.norm).forward
        if self.has_head:
            skeleton.norm.forward = _unchanged  # `loss` applies it; the layers' part of the model ends before it
        else:
            _replace(self.model, skeleton.norm, nn.Identity())
            _replace(self.model, skeleton.head, nn.Identity())
        if not self.has_embed:
            _replace(self.model, skeleton.embed, nn.Identity())
        self.model.requires_grad_(True)
        lost = [name for name, parameter in self.model.named_parameters() if parameter.is_meta]
        if lost:
            raise UsageError(f"{lost[0]} belongs to no unit of the model, so it cannot be cut into stages")

    def layers(self, x: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """x: (B, S) ids where the embedding is held, else (B, S, D). returns: (B, S, D)"""
        given: dict[str, torch.Tensor] = {} if positions is None else {"position_ids": positions}
        if x.dtype == torch.long:
            given["input_ids"] = x
        else:
            given["inputs_embeds"] = x if self._factor == 1.0 else x / self._factor
        out: torch.Tensor = self._base(use_cache=False, **given).last_hidden_state
        return out

    def loss(self, hidden_BSD: torch.Tensor, targets_BS: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy through norm and head, as in `worker_steps`."""
        logits: torch.Tensor = self._head(self._norm_forward(self._norm, hidden_BSD))
        if self._logits is not None:
            logits = self._logits(logits)
        return functional.cross_entropy(logits.float().flatten(0, 1), targets_BS.flatten())


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


def _replace(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def _wraps(skeleton: Skeleton) -> bool:
    """Whether the family's layers answer with a tuple, found out with layers that do nothing.

    raises: UsageError when neither way brings the input back
    """
    base, probe = skeleton.model.base_model, torch.linspace(-1, 1, 3 * skeleton.config.hidden_size)
    probe = probe.view(1, 3, -1)
    layers = list(skeleton.layers)
    norm = skeleton.norm.__dict__.get("forward")
    skeleton.norm.forward = _unchanged
    try:
        for wraps in (False, True):
            for index, layer in enumerate(layers):
                skeleton.layers[index] = _Skipped(layer, wraps)
            try:
                with torch.no_grad():
                    out = base(inputs_embeds=probe, use_cache=False).last_hidden_state
            except (TypeError, AttributeError, ValueError, IndexError, RuntimeError):
                continue
            if out.shape == probe.shape and torch.allclose(out, probe * embedding_factor_of(out, probe), atol=1e-4):
                return wraps
    finally:
        for index, layer in enumerate(layers):
            skeleton.layers[index] = layer
        if norm is None:
            del skeleton.norm.__dict__["forward"]
    raise UsageError(f"{type(skeleton.model).__name__} does more between its layers than passing on what they gave")


def embedding_factor_of(out: torch.Tensor, probe: torch.Tensor) -> float:
    return float(out.flatten()[-1] / probe.flatten()[-1])
