"""How good a compressed KV cache is: what a model says after it, against what it says after the exact one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from shoal.compression.kv_bitstream import FINE_TOKENS, decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, from_floats, to_floats
from shoal.compression.kv_profile import KvProfile

CONTINUATION = 64

# A causal language model of transformers, whose own types do not say what calling one gives.
Model = Any


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """A document for measuring: an exact cache, the tokens that follow, and the model's log-probabilities for them."""

    exact: KvBlock
    tokens: torch.Tensor
    log_probabilities: torch.Tensor


@dataclass(frozen=True, slots=True)
class Quality:
    """Against the exact cache: KL (mean and the worst document), top-1 agreement, perplexity ratio less one."""

    kl: float
    worst_kl: float
    top1: float
    perplexity_change: float
    bits_per_value: float


def cached(model: Model, ids: torch.Tensor) -> tuple[Any, list[torch.Tensor], list[torch.Tensor]]:
    """The model's output for ids (T,), and the keys and values (1, H, T, D) of its layers as attention read them."""
    cache = DynamicCache()
    output = model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    return output, [layer.keys for layer in layers], [layer.values for layer in layers]


def block_of(keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], dtype: str = "bfloat16") -> KvBlock:
    arrays = [from_floats(stacked(tensors), dtype) for tensors in (keys, values)]
    layers, tokens, heads, width = arrays[0].shape
    return KvBlock(KvShape(layers, tokens, heads, width, dtype), arrays[0], arrays[1])


def continuation(model: Model, ids: torch.Tensor) -> Continuation:
    """The last CONTINUATION tokens are what follows."""
    with torch.no_grad():
        _, keys, values = cached(model, ids[:-CONTINUATION])
    exact = block_of(keys, values)
    tokens = ids[-CONTINUATION:]
    return Continuation(exact, tokens, log_probabilities(model, exact, tokens))


def cache_of(block: KvBlock) -> DynamicCache:
    cache = DynamicCache()
    floats = [to_floats(array, block.shape.dtype) for array in (block.keys, block.values)]
    for layer in range(block.shape.layers):
        keys, values = (torch.from_numpy(np.ascontiguousarray(a[layer].transpose(1, 0, 2)))[None] for a in floats)
        cache.update(keys, values, layer)
    return cache


def log_probabilities(model: Model, block: KvBlock, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(input_ids=tokens[None], past_key_values=cache_of(block), use_cache=True)
    return torch.log_softmax(output.logits[0].float(), -1)


def measure(model: Model, held_out: Sequence[Continuation], code: Callable[[KvBlock], tuple[KvBlock, int]]) -> Quality:
    """code: a block to what is decoded of it and the bytes that travelled."""
    kl, agreement, surprise, bits = [], [], [], []
    for document in held_out:
        decoded, size = code(document.exact)
        exact = document.log_probabilities
        got = log_probabilities(model, decoded, document.tokens)
        kl.append(float((exact.exp() * (exact - got)).sum(-1).mean()))
        agreement.append(float((exact.argmax(-1) == got.argmax(-1)).float().mean()))
        following = document.tokens[1:, None]
        surprise.append(float((exact[:-1].gather(1, following) - got[:-1].gather(1, following)).mean()))
        bits.append(8 * size / document.exact.shape.values)
    change = float(np.exp(np.mean(surprise)) - 1)
    return Quality(float(np.mean(kl)), max(kl), float(np.mean(agreement)), change, float(np.mean(bits)))


def coded_by(profile: KvProfile, level: str) -> Callable[[KvBlock], tuple[KvBlock, int]]:
    def code(block: KvBlock) -> tuple[KvBlock, int]:
        payloads = encode_kv(block, level, profile, fine_tokens=FINE_TOKENS)
        return decode_kv(payloads, block.shape, profile), sum(map(len, payloads))

    return code


def divergence(model: Model, document: Continuation, changed: KvBlock) -> float:
    exact = document.log_probabilities
    return float((exact.exp() * (exact - log_probabilities(model, changed, document.tokens))).sum(-1).mean())


def stacked(tensors: Sequence[torch.Tensor]) -> npt.NDArray[np.float32]:
    """(1, H, T, D) of each layer as (L, T, H, D)."""
    return torch.stack([t.detach()[0].float().transpose(0, 1) for t in tensors]).contiguous().cpu().numpy()
