"""One attention function for every transformers decoder: a packed batch of many sessions, each with its own paged KV.

A batch is the new positions of all its sessions end to end. The function that transformers calls per layer writes their
keys and values into the pool and lets each session's queries see that session's positions only.

Shapes: T new positions of the batch, N of one session, L positions that session holds afterwards (from the first
visible one), H query heads, K key-value heads, G = H / K, D width of a head.
"""
# ruff: noqa: N803  names end in their shapes, as the legend above says

import threading

import torch
import torch.nn.functional as F  # noqa: N812

from .attention_plan import AttentionPlan
from .model_skeleton import ATTENTION
from .transformers_imports import Untyped, import_quickly


class _Running(threading.local):
    plan: AttentionPlan | None = None


running = _Running()  # the plan of the forward pass on this thread; layers of some families drop unknown arguments


def attend(
    module: Untyped,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. query: (1, H, T, D), key, value: (1, K, T, D); returns (1, T, H, D)."""
    plan = running.plan
    if plan is None:
        raise RuntimeError("attention outside a forward pass of a shard")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = attend_packed(
        plan,
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale,
        sliding_window or 0,
        softcap,
        s_aux,
    )
    return out[None], None


def attend_packed(
    plan: AttentionPlan,
    layer: int,
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write the new keys and values, and attend. returns: (T, H, D)"""
    keys, values = plan.cache.pool(layer, k_TKD, v_TKD)
    plan.seen[layer] = window
    if plan.slots is None:
        piece = plan.pieces[0]
        at = piece.room.base + piece.start
        keys[at : at + piece.count].copy_(k_TKD)
        values[at : at + piece.count].copy_(v_TKD)
    else:
        keys.index_copy_(0, plan.slots, k_TKD)
        values.index_copy_(0, plan.slots, v_TKD)
    plain = softcap is None and sinks is None
    if plan.gathers and len(plan.pieces) > 1 and q_THD.shape[0] == len(plan.pieces):
        return _decode_together(plan, q_THD, keys, values, scale, window, softcap, sinks)
    if plain and plan.steps_alone and len(plan.pieces) > 1 and q_THD.dtype == torch.float32:
        return _decode_each(plan, q_THD, keys, values, scale, window)
    outputs = []
    for at, piece in enumerate(plan.pieces):
        first, stop = plan.first_visible(piece, window), piece.start + piece.count
        if piece.room.slots is None:
            base = piece.room.base
            seen_k, seen_v = keys[base + first : base + stop], values[base + first : base + stop]
        else:
            places = piece.room.slots[first:stop]
            seen_k, seen_v = keys.index_select(0, places), values.index_select(0, places)
        q = q_THD if len(plan.pieces) == 1 else q_THD[plan.offsets[at] : plan.offsets[at + 1]]
        if plain and piece.count == 1 and q.dtype == torch.float32:
            outputs.append(_decode_one(q, seen_k, seen_v, scale))
        elif plain:
            whole = first == 0 and piece.start == 0 and (not window or stop <= window)
            mask = None if whole else plan.mask(at, window, q.dtype)
            outputs.append(_fused(q, seen_k, seen_v, mask, scale, is_causal=whole and piece.count > 1))
        else:
            outputs.append(_by_hand(q, seen_k, seen_v, plan.mask(at, window, torch.float32), scale, softcap, sinks))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _decode_each(
    plan: AttentionPlan, q_SHD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """`_decode_one` for each of S sessions, with what they share done once. returns: (S, H, D)"""
    sessions, heads, width = q_SHD.shape
    k, v = keys.permute(1, 2, 0), values.transpose(0, 1)
    outputs = []
    for q, piece in zip((q_SHD * scale).view(sessions, keys.shape[1], -1, width).unbind(), plan.pieces, strict=True):
        first, stop = piece.room.base + plan.first_visible(piece, window), piece.room.base + piece.start + 1
        outputs.append(torch.bmm(torch.softmax(torch.bmm(q, k[:, :, first:stop]), -1), v[:, first:stop]))
    return torch.stack(outputs).view(sessions, heads, -1)


def _decode_one(
    q_1HD: torch.Tensor,
    k_LKD: torch.Tensor,
    v_LKD: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One query: two small products, less overhead on CPU than the fused kernel. returns: (1, H, D)"""
    heads = k_LKD.shape[1]
    scores = torch.bmm((q_1HD * scale).view(heads, -1, q_1HD.shape[-1]), k_LKD.permute(1, 2, 0))
    out = torch.bmm(torch.softmax(scores, -1), v_LKD.transpose(0, 1))
    return out.view(1, q_1HD.shape[1], -1)


def _fused(
    q_NHD: torch.Tensor,
    k_LKD: torch.Tensor,
    v_LKD: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    *,
    is_causal: bool,
) -> torch.Tensor:
    """returns: (N, H, D)"""
    out = F.scaled_dot_product_attention(
        q_NHD.transpose(0, 1)[None],
        k_LKD.transpose(0, 1)[None],
        v_LKD.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q_NHD.shape[1] != k_LKD.shape[1],
    )
    return out[0].transpose(0, 1)


def _by_hand(
    q_NHD: torch.Tensor,
    k_LKD: torch.Tensor,
    v_LKD: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Soft-capped scores (Gemma 2) and attention sinks (gpt-oss), which the fused kernel lacks. returns: (N, H, D)"""
    groups = q_NHD.shape[1] // k_LKD.shape[1]
    k = k_LKD.transpose(0, 1).repeat_interleave(groups, 0)
    v = v_LKD.transpose(0, 1).repeat_interleave(groups, 0)
    scores = _capped(torch.matmul(q_NHD.transpose(0, 1), k.transpose(1, 2)) * scale, softcap)
    weights = _softmax(scores if mask is None else scores + mask, sinks)
    return torch.matmul(weights.to(v.dtype), v).transpose(0, 1)


def _decode_together(
    plan: AttentionPlan,
    q_SHD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window: int,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One new position for each of S sessions, their KV gathered and padded to the longest. returns: (S, H, D)"""
    index, bias = plan.padded(window, q_SHD.dtype)
    k, v = keys[index].transpose(1, 2), values[index].transpose(1, 2)  # (S, K, Lmax, D)
    q = q_SHD[:, :, None]
    gqa = q.shape[1] != k.shape[1]
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=gqa)
        return out[:, :, 0]
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    weights = _softmax(_capped(torch.matmul(q, k.transpose(2, 3)) * scale, softcap) + bias, sinks)
    return torch.matmul(weights.to(v.dtype), v)[:, :, 0]


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Over the last dimension, in float32; a sink per head takes part and is dropped. scores: (..., H, N, L)"""
    scores = scores.float()
    if sinks is None:
        return torch.softmax(scores, -1)
    column = sinks.float().reshape(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat((scores, column), -1), -1)[..., :-1]


def register() -> None:
    """Make `attend` known to transformers, once per process; again does no harm."""
    import_quickly("transformers.modeling_utils").AttentionInterface.register(ATTENTION, attend)
