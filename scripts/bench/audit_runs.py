"""Servers for `audits.py`: sessions of real text through the engine, honest or not, and their distance from a replay.

Shapes: T positions of a session, P = 32 of a chunk, D hidden.
"""

import functools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from shoal.compression import activations
from shoal.node.activation_tensors import tensor_of
from shoal.node.audit_replay import distance
from shoal.node.engine_core import EngineCore
from shoal.node.model_source import LocalModel, embedded_folder, resolve
from shoal.node.shard import Shard
from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Done, Work
from shoal.swarm.units import Span

CHUNK = 32
CPU = torch.device("cpu")
FRONT, BACK = Span(0, 5), Span(5, 9)  # embed+0:4, 4:8 of novels-6m
Distances = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One session at one hop. ids: (T,); hidden: an activation of T positions for a hop behind the first"""

    ids: tuple[int, ...]
    hidden: bytes


@functools.cache
def novels(corpus: Path) -> npt.NDArray[np.int64]:
    tokenizer = Tokenizer.from_file(str(embedded_folder() / "tokenizer.json"))
    return np.concatenate([np.array(tokenizer.encode(p.read_text()).ids) for p in sorted(corpus.glob("*.txt"))])


def texts(corpus: Path, sessions: int, length: int, seed: int) -> list[tuple[int, ...]]:
    """Stretches of the novels, drawn at random."""
    ids = novels(corpus)
    starts = np.random.default_rng(seed).integers(0, len(ids) - length, sessions)
    return [tuple(int(i) for i in ids[start : start + length]) for start in starts]


def quantised(folder: Path, bits: int, cache: Path) -> LocalModel:
    """The embedded model with the layers' matrices rounded: int8 with a scale a row, 4 bits with one for each 16."""
    target = folder / f"int{bits}"
    if not target.exists():
        shutil.copytree(embedded_folder(), target)
        for path in target.glob("*.safetensors"):
            state = load_file(path)
            save_file({k: _rounded(v, bits) if v.dim() == 2 and "layers" in k else v for k, v in state.items()}, path)
    return resolve(str(target), cache)


def _rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    groups = weight.float().reshape(weight.shape[0], -1, weight.shape[1] if bits == 8 else 16)
    scale = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)
    return (torch.round(groups / scale) * scale).reshape(weight.shape).to(weight.dtype)


def core_of(model: LocalModel, dtype: str, tokens: int = 32768) -> EngineCore:
    return EngineCore(Shard.load(model, Span(0, model.manifest.layers + 2), dtype, CPU), tokens)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Missing:
    """A layer that is not computed."""

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return x


@contextmanager
def without(core: EngineCore, layer: int) -> Iterator[None]:
    kept = core.shard.layers[layer]
    core.shard.layers[layer] = Missing()
    try:
        yield
    finally:
        core.shard.layers[layer] = kept


def served(core: EngineCore, span: Span, sessions: Sequence[Session], prompt: int, together: int) -> list[bytes]:
    """What a server sends on: each session's prompt at once, then a position at a time. `together` in one batch.

    prompt: positions of it; the length of the sessions for a replay, which is one prefill
    """
    made: list[bytes] = []
    for at in range(0, len(sessions), together):
        made += _group(core, span, sessions[at : at + together], prompt)
    return made


def _group(core: EngineCore, span: Span, sessions: Sequence[Session], prompt: int) -> list[bytes]:
    length = len(sessions[0].ids)
    parts: list[list[tuple[bytes, int]]] = [[] for _ in sessions]
    names = [SessionId(f"s{n}") for n in range(len(sessions))]
    for name in names:
        core.open(name, span, length, Sampling(), ())
    edges = [0, *range(prompt, length), length]
    for start, stop in pairwise(edges):
        if start == stop:
            continue
        for number, session in enumerate(sessions):

            def settle(
                done: Done | None, error: ShoalError | None, into: int = number, count: int = stop - start
            ) -> None:
                if done is None:
                    raise error or RuntimeError("no answer")
                parts[into].append((done.hidden, count))

            hidden = activations.cut(session.hidden, length, start, stop) if session.hidden else b""
            ids = () if session.hidden else session.ids[start:stop]
            core.submit(Work(names[number], start, stop - start, ids, hidden), settle)
        while core.turn():
            pass
    for name in names:
        core.close(name)
    return [activations.join(part) for part in parts]


def replayed(core: EngineCore, span: Span, sessions: Sequence[Session]) -> list[bytes]:
    return served(core, span, sessions, len(sessions[0].ids), 1)


def behind(core: EngineCore, ids: Sequence[tuple[int, ...]], span: Span) -> list[Session]:
    """Sessions as the hop that holds `span` sees them."""
    first = [Session(each, b"") for each in ids]
    if span.start == 0:
        return first
    hidden = replayed(core, Span(0, span.start), first)
    return [Session(each, h) for each, h in zip(ids, hidden, strict=True)]


def floats(made: bytes, count: int, width: int = 256) -> torch.Tensor:
    return tensor_of(made, count, width, torch.float32, CPU)


def bases(core: EngineCore, span: Span, sessions: Sequence[Session]) -> list[torch.Tensor]:
    """(T, D) each: the residual stream before the span's first layer."""
    length = len(sessions[0].ids)
    if span.start:
        return [floats(session.hidden, length) for session in sessions]
    return [floats(made, length) for made in replayed(core, Span(0, 1), sessions)]


def distances(
    claimed: Sequence[torch.Tensor], again: Sequence[torch.Tensor], before: Sequence[torch.Tensor]
) -> Distances:
    """One for each chunk, in the order of the sessions."""
    found = [
        distance(a[at : at + CHUNK], b[at : at + CHUNK], x[at : at + CHUNK])
        for a, b, x in zip(claimed, again, before, strict=True)
        for at in range(0, len(a), CHUNK)
    ]
    return np.array(found)
