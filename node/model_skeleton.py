"""A transformers model without weights, taken apart into units: found by structure, not by a table of families.

Parameters are born on the meta device, so a skeleton of any size costs no memory; buffers (rotary frequencies,
embedding scales) are computed for real, because no checkpoint holds them.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shoal.swarm.errors import UsageError

from .transformers_imports import Untyped, causal_model_class, import_quickly

ATTENTION = "shoal"  # the name under which `attention.attend` is registered
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_one_builder = threading.Lock()


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The parts of a causal language model; every parameter is on the meta device until weights are loaded."""

    model: Untyped  # the whole transformers model
    config: Untyped
    embed: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    rotary: nn.Module | None
    layer_types: tuple[str, ...]


@contextmanager
def _parameters_on_meta(dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have real buffers and parameters of `dtype` without memory, not initialised.

    The change to torch is process-wide by nature, so one thread builds at a time; what other threads register
    meanwhile (weights that they load) stays as it is.
    """
    builder = threading.get_ident()
    with _one_builder:
        register = nn.Module.register_parameter

        def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            ours = threading.get_ident() == builder
            if ours and parameter is not None and parameter.device.type != "meta":
                kind = dtype if parameter.is_floating_point() else parameter.dtype
                parameter = nn.Parameter(torch.empty_like(parameter, device="meta", dtype=kind), requires_grad=False)
            register(module, name, parameter)

        nn.Module.register_parameter = on_meta  # type: ignore[assignment,method-assign]
        try:
            with import_quickly("transformers.initialization").no_init_weights():
                yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]


def build_skeleton(config: Mapping[str, Any], dtype: torch.dtype, attention: str | None = ATTENTION) -> Skeleton:
    """config: the parsed config.json; attention: None for what transformers takes by itself, as for training

    raises: UsageError when the architecture is unknown, or is not embedding, decoder layers, norm and head in a row
    """
    architecture = str((config.get("architectures") or [""])[0])
    model_class = causal_model_class(architecture, str(config.get("model_type", "")))
    try:
        typed = model_class.config_class.from_dict(dict(config))
        if attention is not None:
            typed._attn_implementation = attention  # noqa: SLF001  transformers has no public setter before the model exists
        with _parameters_on_meta(dtype):
            model = model_class(typed).eval()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise UsageError(f"transformers cannot build {architecture} from this config.json: {error}") from error
    return _take_apart(model, typed, architecture)


def _take_apart(model: Untyped, config: Untyped, architecture: str) -> Skeleton:
    base, embed, head = model.base_model, model.get_input_embeddings(), model.get_output_embeddings()
    layers = [m for m in base.children() if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers]
    norms, rotaries, unknown = [], [], []
    for name, child in base.named_children():
        kind = type(child).__name__.lower()
        if child is embed or isinstance(child, (nn.Dropout, nn.Identity)) or any(child is found for found in layers):
            continue
        if "norm" in kind:
            norms.append(child)
        elif "rotary" in kind:
            rotaries.append(child)
        else:
            unknown.append(name)
    if unknown or len(layers) != 1 or len(norms) != 1 or len(rotaries) > 1 or embed is None or head is None:
        parts = ", ".join(unknown) or "no single list of layers with one norm after it"
        raise UsageError(f"{architecture} cannot be split into embed, layers and head: {parts}")
    types = tuple(getattr(config, "layer_types", None) or ("full_attention",) * len(layers[0]))
    if strange := set(types) - _LAYER_TYPES:
        raise UsageError(f"{architecture} has layers of a kind that shoal cannot serve: {', '.join(sorted(strange))}")
    if getattr(config, "use_bidirectional_attention", False):
        raise UsageError(f"{architecture} with bidirectional attention does not generate token by token")
    return Skeleton(model, config, embed, layers[0], norms[0], head, rotaries[0] if rotaries else None, types)
