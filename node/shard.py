"""The part of a model that this node holds, as a function of packed batches.

A shard runs any sub-span of its units: ids or hidden states in, hidden states or logits out. It knows sessions only
as room in its KV cache, so it is used alike by the engine, by tests and by a client that keeps layers local.

Shapes: T positions of the batch, D hidden, V vocabulary, R rows that want logits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from shoal.swarm.errors import LocalFault, UsageError
from shoal.swarm.manifest import Manifest
from shoal.swarm.units import Span, describe, has_embed, has_head, layer_range

from . import attention
from .activation_tensors import is_finite
from .attention_plan import AttentionPlan, Piece
from .free_memory import return_freed_memory
from .head_transform import embedding_factor, logit_transform
from .kv_cache import PagedCache
from .lean_layer import LeanLayer, lean_layer
from .manifest_builder import parse_config
from .model_skeleton import Skeleton, build_skeleton
from .model_source import LocalModel
from .packed_linear import can_pack, fast_linear, pack_linears
from .rotary_table import Rope, RotaryTable
from .weights import WeightReader, own_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LayerDone = Callable[[int, int], None]  # units loaded, units in all


def choose_device(name: str = "auto") -> torch.device:
    """raises: UsageError when CUDA is asked for and not there"""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}; write auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA device that torch can use; start with --device cpu")
    return device


def choose_dtype(name: str, manifest: Manifest, device: torch.device) -> str:
    """auto: the checkpoint's on CUDA; float32 on CPU, where rounding then does not depend on who shares the batch.

    raises: UsageError
    """
    if name == "auto":
        return manifest.dtype if device.type == "cuda" else "float32"
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}: write auto, {', '.join(DTYPES)}")
    return name


class Shard:
    """Units [span.start, span.stop) of one model on one device."""

    def __init__(self, manifest: Manifest, span: Span, dtype: str, device: torch.device, skeleton: Skeleton) -> None:
        self.manifest, self.span, self.dtype, self.device = manifest, span, dtype, device
        self.torch_dtype = DTYPES[dtype]
        self._embed: nn.Module | None = None
        self._embedding_factor = 1.0
        self.layers: dict[int, Any] = {}  # by index: a LeanLayer or a transformers layer
        self._norm: nn.Module | None = None
        self._head: nn.Module | None = None
        self._logits: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._types = skeleton.layer_types
        self._rotary = (
            RotaryTable(skeleton.rotary.to(device), self._types, skeleton.config, self.torch_dtype, device)
            if skeleton.rotary is not None
            else None
        )
        self._lean = False

    @classmethod
    def load(
        cls, model: LocalModel, span: Span, dtype: str, device: torch.device, done: LayerDone | None = None
    ) -> "Shard":
        """Read the weights of a span; the files must have been fetched.

        raises: UsageError (corrupt files, an architecture that cannot be served), OutOfMemory
        """
        manifest = model.manifest
        if span.stop > manifest.layers + 2:
            raise UsageError(f"{manifest.name} has {manifest.layers} layers; the span is out of range")
        attention.register()
        config = parse_config(model.text_file("config.json"), "config.json")
        skeleton = build_skeleton(config, DTYPES[dtype])
        shard = cls(manifest, span, dtype, device, skeleton)
        reader = WeightReader(skeleton, manifest, model.folder, DTYPES[dtype], device)
        for count, unit in enumerate(range(span.start, span.stop), 1):
            shard._load_unit(unit, skeleton, reader)
            if done:
                done(count, len(span))
        shard._try_out()
        return_freed_memory()
        return shard

    def _load_unit(self, unit: int, skeleton: Skeleton, reader: WeightReader) -> None:
        packs = can_pack(self.torch_dtype, self.device)
        if unit == 0:
            self._embedding_factor = embedding_factor(skeleton)
            reader.fill(unit, [skeleton.embed])
            own_memory(skeleton.embed)
            self._embed = skeleton.embed
        elif unit == self.manifest.layers + 1:
            self._logits = logit_transform(skeleton)
            reader.fill(unit, [skeleton.norm, skeleton.head])
            self._norm = skeleton.norm
            head: Any = skeleton.head
            self._head = fast_linear(head.weight, head.bias) if packs else head
            own_memory(self._norm)
            own_memory(self._head)
        else:
            index = unit - 1
            layer = skeleton.layers[index]
            reader.fill(unit, [layer])
            lean = self._lean_of(layer, index) if packs and (self._lean or not self.layers) else None
            if lean is None:
                if packs:
                    pack_linears(layer)
                own_memory(layer)
            self.layers[index] = lean or layer
            self._lean = lean is not None
            skeleton.layers[index] = nn.Identity()  # what it held is now here only

    def _lean_of(self, layer: nn.Module, index: int) -> LeanLayer | None:
        if self._rotary is None:
            return None
        rope = self._rotary.first(3, self._types[index])
        return lean_layer(layer, rope, self.manifest.hidden, check=not self.layers)

    def _try_out(self) -> None:
        """One position through everything, so that a family that cannot be served says so before it is announced."""
        cache = self.new_cache(64)
        piece = Piece(cache.reserve(1), 0, 1)
        zeros = torch.zeros((1, self.manifest.hidden), dtype=self.torch_dtype, device=self.device)
        x = torch.zeros(1, dtype=torch.long, device=self.device) if has_embed(self.span) else zeros
        try:
            plan = self.plan(cache, (piece,))
            out = self.run(self.span, x, plan, (0,))
        except (TypeError, AttributeError, KeyError, ValueError, RuntimeError) as error:
            raise UsageError(f"{self.manifest.architecture} cannot be served layer by layer: {error}") from error
        if not is_finite(out):
            where = describe(self.span, self.manifest.layers)
            raise UsageError(
                f"{where} of {self.manifest.name} gives NaN or infinity in {self.dtype}: its weights are corrupt, "
                "or too large for this dtype"
            )
        for index in layer_range(self.span, self.manifest.layers):
            window = plan.seen.get(index)
            if window is None or (self._types[index] == "sliding_attention" and not window):
                raise UsageError(f"{self.manifest.architecture} does not pass its attention through the interface")

    def new_cache(self, tokens: int) -> PagedCache:
        return PagedCache(tokens, self.torch_dtype, self.device)

    def plan(self, cache: PagedCache, pieces: Sequence[Piece]) -> AttentionPlan:
        return AttentionPlan(cache, pieces, gathers=self.device.type == "cuda")

    @torch.inference_mode()
    def run(self, span: Span, x: torch.Tensor, plan: AttentionPlan, logit_rows: Sequence[int]) -> torch.Tensor:
        """Run a packed batch through `span`, which lies inside the shard's own.

        x: (T,) ids when the span begins with embed, else (T, D) in the shard's dtype
        logit_rows: positions of the batch that want logits, when the span ends with head
        returns: (T, D), or float32 (R, V) when the span ends with head
        raises: LocalFault when the span is not held
        """
        if not self.span.covers(span):
            raise LocalFault(f"{describe(span, self.manifest.layers)} is not loaded here")
        if has_embed(span):
            assert self._embed is not None
            x = self._embed(x)
            if self._embedding_factor != 1.0:
                x = x * self._embedding_factor
        layers = layer_range(span, self.manifest.layers)
        if layers:
            attention.running.plan = plan
            try:
                x = self._through(layers, x, plan)
            finally:
                attention.running.plan = None
        if not has_head(span, self.manifest.layers):
            return x
        assert self._norm is not None
        assert self._head is not None
        if not logit_rows:
            return x.new_empty((0, self.manifest.vocabulary), dtype=torch.float32)
        if len(logit_rows) != x.shape[0]:
            x = x[list(logit_rows)]
        logits: torch.Tensor = self._head(self._norm(x))
        return (logits if self._logits is None else self._logits(logits)).float()

    def _through(self, layers: range, x: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        if self._lean and self._rotary is not None:
            cos, sin = self._rotary.signed_at(plan)
            for index in layers:
                x = self.layers[index].forward(x, cos, sin, plan)
            return x
        ropes = self._rotary.at(plan.pieces) if self._rotary is not None else {}
        shared: Rope | None = ropes.get("")
        positions = plan.positions()[None]
        x = x[None]
        for index in layers:
            rope = shared or ropes.get(self._types[index])
            x = self.layers[index].forward(x, attention_mask=None, position_ids=positions, position_embeddings=rope)
            x = x if isinstance(x, torch.Tensor) else x[0]
        return x[0]
