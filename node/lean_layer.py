"""The Llama decoder layer in fewer, larger operations, for float32 on CPU.

transformers' own layer spends about half of a small model's time between the products. Llama, Mistral, Qwen2 and
Qwen3 share one layer, so that one is written out here: q, k and v in one product, gate and up in one, rotary
embedding over queries and keys together, and the root mean square through one norm. `lean_layer` compares it with the
original before it replaces it.

Shapes: T positions, D hidden, H query heads, K key-value heads, W width of a head.
"""
# ruff: noqa: N803, N806  names end in their shapes, as the legend above says

import torch
from torch import nn

from .attention import attend_packed, running
from .attention_plan import AttentionPlan, Piece
from .kv_cache import PagedCache
from .packed_linear import FastLinear, fast_linear
from .rotary_table import Rope, signed_sin
from .transformers_imports import Untyped

_KNOWN = {
    ("transformers.models.llama.modeling_llama", "LlamaDecoderLayer"),
    ("transformers.models.mistral.modeling_mistral", "MistralDecoderLayer"),
    ("transformers.models.qwen2.modeling_qwen2", "Qwen2DecoderLayer"),
    ("transformers.models.qwen3.modeling_qwen3", "Qwen3DecoderLayer"),
}
_TOLERANCE = 1e-3  # of the largest output; rounding is about 1e-6


class RootMeanSquareNorm:
    """x * weight / sqrt(mean(x^2) + eps) over the last dimension; weight: broadcastable to x."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight = weight.detach().clone()
        self._eps = torch.tensor(eps)
        self._share = 1.0 / weight.shape[-1]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, 2, -1, True)
        return x.mul(torch.addcmul(self._eps, norm, norm, value=self._share).rsqrt_()).mul_(self._weight)


class LeanLayer:
    """One decoder layer over a packed batch."""

    def __init__(self, layer: Untyped) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index = int(attention.layer_idx)
        self._width = int(attention.head_dim)
        self._heads = attention.q_proj.out_features // self._width
        self._kv_heads = attention.k_proj.out_features // self._width
        self._scale = float(attention.scaling)
        if type(layer).__name__ == "MistralDecoderLayer":
            self._window = int(getattr(attention.config, "sliding_window", None) or 0)
        else:
            self._window = int(getattr(attention, "sliding_window", None) or 0)
        self._norm = RootMeanSquareNorm(layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
        after = layer.post_attention_layernorm
        self._norm_after = RootMeanSquareNorm(after.weight, after.variance_epsilon)
        self._head_norm = _head_norm(attention, self._heads, self._kv_heads)
        self._qkv = _merged(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = fast_linear(attention.o_proj.weight, attention.o_proj.bias)
        self._gate_up = _merged(mlp.gate_proj, mlp.up_proj)
        self._down = fast_linear(mlp.down_proj.weight, mlp.down_proj.bias)
        self._inner = mlp.gate_proj.out_features
        self._activation = mlp.act_fn

    def forward(
        self, x_TD: torch.Tensor, cos_T1W: torch.Tensor, sin_T1W: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        """sin_T1W: with its first half negated (`signed_sin`). returns: (T, D)"""
        rows, heads, kv_heads = x_TD.shape[0], self._heads, self._kv_heads
        qkv = self._qkv.forward(self._norm(x_TD)).view(rows, -1, self._width)
        qk, v = qkv.split_with_sizes((heads + kv_heads, kv_heads), 1)
        if self._head_norm is not None:
            qk = self._head_norm(qk)
        qk = torch.addcmul(qk * cos_T1W, qk.roll(self._width // 2, -1), sin_T1W)  # rolled by half: halves swapped
        q, k = qk.split_with_sizes((heads, kv_heads), 1)
        seen = attend_packed(plan, self.index, q, k, v, self._scale, self._window)
        x_TD = x_TD + self._out.forward(seen.reshape(rows, -1))
        gate, up = self._gate_up.forward(self._norm_after(x_TD)).split_with_sizes((self._inner, self._inner), 1)
        inner = self._activation(gate).mul_(up)
        return x_TD + self._down.forward(inner)


def lean_layer(layer: nn.Module, rope: Rope, hidden: int, *, check: bool) -> LeanLayer | None:
    """The same layer in lean form, or None when it is of another family or does not give the same numbers.

    rope: of positions 0 to 2, for the comparison
    """
    kind = (type(layer).__module__, type(layer).__name__)
    if kind not in _KNOWN or rope[0].shape[-1] != getattr(layer.self_attn, "head_dim", 0):
        return None
    if not check:
        return LeanLayer(layer)
    with torch.inference_mode():
        x = torch.linspace(-1.0, 1.0, 3 * hidden).sin_().mul_(3.0).view(3, hidden)
        running.plan = _scratch_plan()
        expected = layer.forward(x[None], position_embeddings=rope)[0]
        running.plan = None
        lean = LeanLayer(layer)
        got = lean.forward(x, *signed_sin(rope), _scratch_plan())
        close = bool((got - expected).abs().max() <= _TOLERANCE * expected.abs().max())
    return lean if close else None


def _scratch_plan() -> AttentionPlan:
    cache = PagedCache(64, torch.float32, torch.device("cpu"))
    return AttentionPlan(cache, (Piece(cache.reserve(3), 0, 3),), gathers=False)


def _merged(*linears: nn.Linear) -> FastLinear:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return fast_linear(weight, None)
    zeros = [torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach() for linear in linears]
    return fast_linear(weight, torch.cat(zeros))


def _head_norm(attention: Untyped, heads: int, kv_heads: int) -> RootMeanSquareNorm | None:
    """Qwen3 normalises each head's query and key, with one weight for queries and one for keys."""
    if not hasattr(attention, "q_norm"):
        return None
    q, k = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
    weight = torch.cat((q.expand(heads, -1), k.expand(kv_heads, -1)))
    return RootMeanSquareNorm(weight, attention.q_norm.variance_epsilon)
