"""Several engines in a row, with nothing but bytes between them: what hops are to each other, without a network."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import anyio
import torch

from shoal.node.engine import Engine
from shoal.node.model_source import LocalModel, resolve
from shoal.node.shard import Shard
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Choice, Work
from shoal.swarm.units import Span

CPU = torch.device("cpu")


def local_model(folder: Path, cache: Path) -> LocalModel:
    return resolve(str(folder), cache)


class EngineChain:
    """Engines for the parts of a model between `cuts`; use as a context manager."""

    def __init__(self, model: LocalModel, cuts: Sequence[int], kv_tokens: int = 2048, batch_tokens: int = 256) -> None:
        edges = (0, *cuts, model.manifest.layers + 2)
        self.spans = [Span(start, stop) for start, stop in pairwise(edges)]
        self.engines = [
            Engine(Shard.load(model, span, "float32", CPU), kv_tokens, batch_tokens=batch_tokens) for span in self.spans
        ]

    def __enter__(self) -> "EngineChain":
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.engines:
            engine.stop()

    async def feed(self, session: SessionId, start: int, ids: Sequence[int], *, wants_token: bool) -> Choice | None:
        """Send positions through all engines."""
        hidden, choice = b"", None
        for number, engine in enumerate(self.engines):
            last = number == len(self.engines) - 1
            work = Work(
                session,
                start,
                len(ids),
                () if number else tuple(ids),
                hidden,
                wants_token and last,
            )
            done = await engine.run(work)
            hidden, choice = done.hidden, done.choice
        return choice

    async def generate(
        self, name: str, prompt: Sequence[int], count: int, sampling: Sampling | None = None
    ) -> list[Choice]:
        session, chosen = SessionId(name), sampling or Sampling()
        for engine, span in zip(self.engines, self.spans, strict=True):
            await engine.open(session, span, len(prompt) + count, chosen, tuple(prompt))
        choices: list[Choice] = []
        fed: Sequence[int] = prompt
        at = 0
        while len(choices) < count:
            choice = await self.feed(session, at, fed, wants_token=True)
            assert choice is not None
            at += len(fed)
            choices.append(choice)
            fed = (choice.id,)
        for engine in self.engines:
            engine.close(session)
        return choices

    async def generate_all(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """All prompts at once, as sessions of the same engines."""
        results: list[list[int]] = [[] for _ in prompts]

        async def one(number: int, prompt: Sequence[int]) -> None:
            results[number] = [choice.id for choice in await self.generate(f"session {number}", prompt, count)]

        async with anyio.create_task_group() as tasks:
            for number, prompt in enumerate(prompts):
                tasks.start_soon(one, number, prompt)
        return results
