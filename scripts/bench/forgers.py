"""Servers that compute nothing and send what costs nothing: does any of it pass an audit?

All forge what the span adds to its input (the stronger attack: the input, which everybody has, is added). Each
forgery is held against every chunk, so that a few thousand chunks make millions of trials.

Shapes: N chunks, P positions, D hidden.
"""
# ruff: noqa: N803

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

CHUNK = 32
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """given, added: (N, P, D) float32; added is what the span adds to its input."""

    given: Floats
    added: Floats

    @classmethod
    def of(cls, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> "Chunks":
        given = torch.stack(list(before)).float().numpy()
        added = torch.stack(list(after)).float().numpy() - given
        width = given.shape[-1]
        return cls(given.reshape(-1, CHUNK, width), added.reshape(-1, CHUNK, width))


def apart(forged_NPD: Floats, true_NPD: Floats) -> Floats:
    """(forgeries, chunks) distances as audits measure them, of every forgery from every chunk."""
    norms = np.square(true_NPD, dtype=np.float64).sum(2)  # (N, P)
    scaled = (true_NPD / norms[:, :, None]).astype(np.float32).reshape(len(true_NPD), -1)
    cross = forged_NPD.reshape(len(forged_NPD), -1) @ scaled.T
    own = np.square(forged_NPD, dtype=np.float64).sum(2) @ (1 / norms).T
    squares = (own - 2 * cross.astype(np.float64)) / true_NPD.shape[1] + 1
    return np.sqrt(np.maximum(squares, 0)).astype(np.float32)


def forgeries(chunks: Chunks, limit: float) -> dict[str, Any]:
    """What is made of many is made of the first half of the chunks and held against the second."""
    draw = np.random.default_rng(3)
    half = len(chunks.added) // 2
    known, asked = chunks.added[:half], chunks.added[half:]
    mean, spread = known.mean(0), known.std(0)
    some = [known[draw.choice(half, size, replace=False)].mean(0) for size in (2, 4, 16, 64) for _ in range(half // 2)]
    noise = draw.standard_normal((4 * half, *mean.shape), dtype=np.float32)
    made = {
        "identity": np.zeros((1, *mean.shape), np.float32),
        "mean of all others": np.stack([mean, np.broadcast_to(mean.mean(0), mean.shape)]),
        "means of some others": np.stack(some),
        "population statistics": mean + spread * noise,
    }
    facts = {name: _facts(apart(forged, asked), limit) for name, forged in made.items()}
    found = apart(chunks.added, chunks.added)
    np.fill_diagonal(found, np.inf)
    found[_same_text(chunks.given)] = np.inf
    given, added = chunks.given, chunks.added
    zero = np.sqrt((np.square(given + added).sum(2) / np.square(added).sum(2)).mean(1))
    return {"zero output": _facts(zero, limit), **facts, "another prompt's": _facts(found, limit)}


def _same_text(given: Floats) -> npt.NDArray[np.bool_]:
    """(N, N) chunks of one and the same text at one place: their activations are right, not forged."""
    names = np.array([hash(chunk.tobytes()) for chunk in given])
    return np.asarray(names[:, None] == names[None])


def _facts(found: Floats, limit: float) -> dict[str, Any]:
    tried = found[np.isfinite(found)]
    passed = int((tried <= limit).sum())
    return {
        "trials": int(tried.size),
        "passed": passed,
        "smallest": float(tried.min()),
        "times the limit": round(float(tried.min()) / limit, 1),
        "95 % bound on the rate": 3 / tried.size if not passed else None,
    }
