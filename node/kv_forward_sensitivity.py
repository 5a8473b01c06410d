"""How sensitive a model's output is to its keys and values, from forward passes only.

Keys: the second moments of the queries that read them, before rotation. Values: Wo^T Wo of the heads that they feed.
Both know directions but not how much a layer matters, so each tensor gets one scale: the divergence that a little
noise on it causes, over what the matrix predicts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from shoal.compression.kv_block import KvBlock, KvShape, to_floats
from shoal.compression.kv_fitting import Sensitivity

Doubles = npt.NDArray[np.float64]
Divergence = Callable[[KvBlock], float]
Order = npt.NDArray[np.int64] | slice
NOISE = 0.05


def query_moments(model: torch.nn.Module, ids: torch.Tensor, heads: int, width: int, order: Order) -> Doubles:
    """(L, C, C) summed over the tokens and over the query heads that share a key head; after their norm, if any.

    order: of a head's channels
    raises: ValueError for a model whose attention has no q_proj
    """
    queries: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
        query = output.detach()[0].double()
        queries.append(query.transpose(0, 1) if query.dim() == 3 and len(query) != len(ids) else query)

    modules = dict(model.named_modules())
    of_queries = [module for name, module in modules.items() if name.endswith("q_proj")]
    if not of_queries:
        raise ValueError("a model whose attention has no q_proj: it is calibrated from gradients only (--backward)")
    norms = [module for name, module in modules.items() if name.endswith("q_norm")]
    handles = [module.register_forward_hook(keep) for module in norms or of_queries]
    try:
        with torch.no_grad():
            model(input_ids=ids[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    split = [query.reshape(len(ids), heads, -1, width)[..., order] for query in queries]
    return np.stack([_block_diagonal([query[:, head] for head in range(heads)]) for query in split])


def output_weights(model: torch.nn.Module, heads: int, width: int) -> Doubles:
    """(L, C, C): Wo^T Wo, summed over the query heads that share a value head.

    raises: ValueError for a model whose attention has no o_proj
    """
    weights = [m.weight.detach().double() for name, m in model.named_modules() if name.endswith("o_proj")]
    if not weights:
        raise ValueError("a model whose attention has no o_proj: it is calibrated from gradients only (--backward)")
    split = [weight.reshape(weight.shape[0], heads, -1, width) for weight in weights]
    return np.stack([_block_diagonal([weight[:, head] for head in range(heads)]) for weight in split])


def balanced(total: Sensitivity, blocks: Sequence[KvBlock], divergence: Sequence[Divergence], seed: int) -> Sensitivity:
    """The matrices scaled so that half of e^T M e is the divergence that noise e on one tensor causes.

    divergence[i]: KL in nats a token after replacing the cache of document i by a changed one
    """
    random = np.random.default_rng(seed)
    scaled = []
    for kind, matrices in enumerate((total.keys, total.values)):
        out = matrices.copy()
        for layer in range(len(matrices)):
            caused, predicted = 0.0, 0.0
            for block, diverge in zip(blocks, divergence, strict=True):
                arrays = [to_floats(array, block.shape.dtype) for array in (block.keys, block.values)]
                noise = random.standard_normal(arrays[kind][layer].shape) * NOISE * arrays[kind][layer].std()
                arrays[kind][layer] += noise
                changed = KvBlock(_as_float32(block.shape), arrays[0], arrays[1])
                caused += max(diverge(changed), 1e-9)
                rows = noise.reshape(len(noise), -1)
                predicted += 0.5 * float(np.einsum("tc,cd,td->", rows, matrices[layer], rows)) / len(rows)
            out[layer] *= caused / max(predicted, 1e-30)
        scaled.append(out)
    return Sensitivity(scaled[0], scaled[1])


def _as_float32(shape: KvShape) -> KvShape:
    return replace(shape, dtype="float32")


def _block_diagonal(rows_of_head: Sequence[torch.Tensor]) -> Doubles:
    width = rows_of_head[0].shape[-1]
    out = np.zeros((width * len(rows_of_head), width * len(rows_of_head)))
    for head, rows in enumerate(rows_of_head):
        flat = rows.reshape(-1, width)
        cut = slice(head * width, (head + 1) * width)
        out[cut, cut] = (flat.T @ flat).numpy()
    return out
