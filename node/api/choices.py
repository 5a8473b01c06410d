"""The sessions behind one request: `n` choices of each prompt, all at once."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import anyio
import msgspec

from shoal.swarm.sessions.generation import FinishReason, Route
from shoal.swarm.text.pieces import Piece, Usage
from shoal.swarm.text.text_source import Prepared, TextSource

from .errors import leaves
from .gateway_metrics import GatewayMetrics


@dataclass(slots=True)
class ChoiceRun:
    """One session; the last three fields are set at its end."""

    index: int
    prepared: Prepared
    echo: str = ""  # goes before the first piece
    begun: bool = False  # something of this choice was sent
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    route: Route = field(default_factory=Route)
    finish_reason: FinishReason | None = None

    @property
    def seed(self) -> int:
        return self.prepared.tokens.sampling.seed


def finish_of(run: ChoiceRun) -> Literal["stop", "length"]:
    """A text stream never ends well with any other reason."""
    return "length" if run.finish_reason == "length" else "stop"


Emit = Callable[[ChoiceRun, Piece], Awaitable[None]]
Ended = Callable[[ChoiceRun], Awaitable[None]]


def planned(prompts: Sequence[tuple[Prepared, str]], n: int) -> list[ChoiceRun]:
    """`n` runs for each (prepared prompt, echo), in OpenAI's order; choice i of a prompt has seed + i."""
    return [
        ChoiceRun(place * n + copy, _seeded(prepared, copy), echo)
        for place, (prepared, echo) in enumerate(prompts)
        for copy in range(n)
    ]


def _seeded(prepared: Prepared, copy: int) -> Prepared:
    sampling = prepared.tokens.sampling
    sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + copy) % (1 << 63))
    return replace(prepared, tokens=replace(prepared.tokens, sampling=sampling))


async def run_choices(
    texts: TextSource, metrics: GatewayMetrics, runs: Sequence[ChoiceRun], emit: Emit, ended: Ended
) -> None:
    """Run every choice to its end; the first error cancels the others and is raised alone.

    `emit` and `ended` are called by one choice at a time.
    """
    started = anyio.current_time()
    turn = anyio.Lock(fast_acquire=True)
    only = len(runs) == 1

    async def run(choice: ChoiceRun) -> None:
        first_s: float | None = None
        with metrics.sessions.track_inprogress():
            async with texts.generate(choice.prepared) as stream:
                async for piece in stream:
                    if first_s is None:
                        first_s = anyio.current_time() - started
                    if only:
                        await emit(choice, piece)
                        continue
                    async with turn:
                        await emit(choice, piece)
        choice.usage, choice.route, choice.finish_reason = stream.usage, stream.route, stream.finish_reason
        total_s = anyio.current_time() - started
        metrics.generated(choice.prepared.served.name, choice.usage, choice.route, first_s, total_s)
        async with turn:
            await ended(choice)

    if only:
        return await run(runs[0])
    try:
        async with anyio.create_task_group() as group:
            for choice in runs:
                group.start_soon(run, choice)
    except BaseExceptionGroup as group_error:
        raise next(leaves(group_error)) from group_error
    return None


def total_usage(runs: Sequence[ChoiceRun], n: int) -> Usage:
    """A prompt counts once, however many choices it has."""
    prompt = sum(run.usage.prompt_tokens for run in _firsts(runs, n))
    return Usage(prompt, sum(run.usage.completion_tokens for run in runs))


def _firsts(runs: Sequence[ChoiceRun], n: int) -> Iterator[ChoiceRun]:
    return (run for run in runs if run.index % n == 0)
