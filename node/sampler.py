"""The next token from logits: a pure function of the logits, the sampling and the position.

Order as in transformers and vLLM: penalties, temperature, top-k, top-p, min-p, draw. The draw inverts the cumulative
distribution, most likely token first, at a number hashed from (seed, position): who else is in the batch, and on
which node it runs, changes nothing. Log-probabilities are of the raw softmax, before all of this, as OpenAI and vLLM
report them.

Shapes: R rows, V vocabulary.
"""
# ruff: noqa: N803  names end in their shapes, as the legend above says

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from shoal.swarm.errors import LocalFault
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Choice

Row = npt.NDArray[np.float64]
_HEAD = 1024  # most draws fall among so many likeliest tokens; the rest is sorted only when one does not


@dataclass(frozen=True, slots=True)
class Draw:
    """What one row of logits is for."""

    sampling: Sampling
    position: int  # of the token to choose
    history: Sequence[int] = ()  # the ids so far, when the sampling needs them


def choose(logits_RV: torch.Tensor, draws: Sequence[Draw]) -> list[Choice]:
    """raises: LocalFault when a row has no largest finite value"""
    best = logits_RV.max(-1)
    values, ids = best.values.tolist(), best.indices.tolist()
    if not all(map(math.isfinite, values)):
        raise LocalFault("the head produced NaN or infinity")
    return [
        Choice(token, 0.0) if _is_plain(draw.sampling) else _choose_one(logits_RV[row], draw)
        for row, (token, draw) in enumerate(zip(ids, draws, strict=True))
    ]


def _is_plain(sampling: Sampling) -> bool:
    return sampling.temperature == 0.0 and sampling.top_logprobs < 0 and not sampling.needs_history


def _choose_one(logits_V: torch.Tensor, draw: Draw) -> Choice:
    sampling = draw.sampling
    raw: Row = logits_V.to("cpu", torch.float64).numpy()
    row = _penalised(raw, sampling, draw.history) if sampling.needs_history else raw
    if sampling.temperature == 0.0:
        token = int(row.argmax())
    else:
        token = _drawn(row / sampling.temperature, sampling, uniform(sampling.seed, draw.position))
    if sampling.top_logprobs < 0:
        return Choice(token, 0.0)
    peak = raw.max()
    total = float(peak + np.log(np.exp(raw - peak).sum()))
    top = _largest(raw, sampling.top_logprobs)
    return Choice(token, float(raw[token]) - total, tuple((int(i), float(raw[i]) - total) for i in top))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, the same on every machine."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _penalised(raw: Row, sampling: Sampling, history: Sequence[int]) -> Row:
    """Repetition divides or multiplies (CTRL, arXiv:1909.05858), presence and frequency subtract (OpenAI)."""
    row = raw.copy()
    if not history:
        return row
    ids, counts = np.unique(np.asarray(history, dtype=np.int64), return_counts=True)
    seen = row[ids]
    if sampling.repetition_penalty != 1.0:
        seen = np.where(seen > 0, seen / sampling.repetition_penalty, seen * sampling.repetition_penalty)
    row[ids] = seen - sampling.presence_penalty - sampling.frequency_penalty * counts
    return row


def _drawn(row: Row, sampling: Sampling, number: float) -> int:
    if sampling.top_p >= 1.0 and not 0 < sampling.top_k <= _HEAD and sampling.min_p <= 0.0 and row.size > _HEAD:
        weights = np.exp(row - row.max())
        head = _largest(row, _HEAD)
        reached = np.cumsum(weights[head])
        wanted = number * float(weights.sum())
        if sampling.top_k == 0 and wanted < reached[-1]:
            return int(head[int(np.searchsorted(reached, wanted, side="right"))])
    order = _largest(row, min(sampling.top_k, row.size) if sampling.top_k > 0 else row.size)
    weights = np.exp(row[order] - row[order[0]])
    kept = order.size
    if sampling.top_p < 1.0:
        reached = np.cumsum(weights)
        kept = int(np.searchsorted(reached, sampling.top_p * reached[-1], side="left")) + 1
    if sampling.min_p > 0.0:
        kept = min(kept, max(1, int((weights >= sampling.min_p).sum())))  # the likeliest weighs 1
    reached = np.cumsum(weights[:kept])
    at = int(np.searchsorted(reached, number * reached[-1], side="right"))
    return int(order[min(at, kept - 1)])


def _largest(row: Row, count: int) -> npt.NDArray[np.int64]:
    """Indices of the `count` largest values, largest first, lower index first among equals."""
    if count <= 0:
        return np.empty(0, dtype=np.int64)
    some = np.argpartition(-row, count - 1)[:count] if count < row.size else np.arange(row.size)
    some = np.sort(some)
    return some[np.argsort(-row[some], kind="stable")]
