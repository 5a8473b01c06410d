"""A hosted model that moves with a run: between two requests it goes over to the run's newest outer parameters.

The replica replays the delta log (`swarm.rounds.catch_up`). For a newer round, the tensors of the hosted units are
loaded into a second engine, which takes all sessions that open from then on; those that are open finish on the version
they began with, and its engine ends with the last of them. So at most two versions are in memory, and while the older
one is in use the newer one is not replaced. Nodes of one chain move each in its own time: a session may pass through
layers that are some rounds apart.
"""

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
import structlog

from shoal.swarm.errors import Unavailable, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.catch_up import CatchUp
from shoal.swarm.units import Span

from .engine import Engine
from .hosted_models import HostedModel, HostedModels
from .manifest_builder import parse_config
from .model_source import LocalModel
from .model_units import tensors_of
from .shard import Shard
from .training.checkpoints.tensor_file import Array, write_arrays

log = structlog.get_logger(__name__)
PERIOD_S = 10.0  # between two looks for new rounds
DRAIN_PERIOD_S = 0.5
GRACE_S = 2.0  # a session that was about to open on the older version still may


class Followed(Protocol):
    """Where a run stands, as this node knows it."""

    @property
    def round(self) -> int:
        """Of the last outcome, -1 before the first."""

    def tensors(self) -> Mapping[str, Array]:
        """The outer parameters by name, float32, tied ones once; they may be views."""


class FollowedModel:
    """One model that this node hosts and that a run trains. `stop` it with the node."""

    def __init__(
        self,
        hosting: HostedModels,
        hosted: HostedModel,
        run: Followed,
        scratch: Path | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        """scratch: where weights lie while they are loaded; grace_s: an older version is kept at least so long

        raises: UsageError when the run does not train what this model is made of
        """
        if hosted.local is None:
            raise UsageError(f"{hosted.manifest.name} was not loaded from files and cannot follow a run")
        self._hosting, self._hosted, self._model, self._run = hosting, hosted, hosted.local, run
        self._scratch, self._grace_s = scratch, grace_s
        self._sources = _sources(hosted.local, hosted.span, run.tensors())
        self._older: list[tuple[Engine, float]] = []  # with the time when they were replaced
        self.round: int | None = None  # whose parameters are served; None: those that were loaded from the folder

    async def move(self) -> bool:
        """Go over to the newest parameters if there are newer ones and no third version would be needed.

        raises: UsageError, OutOfMemory; what is served stays as it was
        """
        await self._drain()
        if self._older or self.round == self._run.round:
            return False
        round_ = self._run.round
        shard = await anyio.to_thread.run_sync(self._load)
        old = self._hosted.engine
        self._hosted = replace(self._hosted, engine=Engine(shard, old.kv_tokens, keeps_lanes=old.keeps_lanes))
        self._hosting.add(self._hosted)
        self._older.append((old, anyio.current_time()))
        self.round = round_
        log.info("moved_to_round", model=self._hosted.manifest.name, round=round_)
        await self._drain()
        return True

    async def follow(
        self,
        catch_up: Callable[[], CatchUp],
        peers: Callable[[], Awaitable[Sequence[PeerId]]],
        period_s: float = PERIOD_S,
    ) -> None:
        """For ever: look for new rounds, and go over to them. catch_up: one attempt for the run's replica"""
        while True:
            try:
                await catch_up().run(peers)
                await self.move()
            except Unavailable as error:
                log.warning("run_not_reached", model=self._hosted.manifest.name, reason=str(error))
            with anyio.move_on_after(period_s):
                while self._older:
                    await anyio.sleep(DRAIN_PERIOD_S)
                    await self._drain()
                await anyio.sleep_forever()

    def stop(self) -> None:
        """End every engine; sessions that are open fail."""
        for engine in (*(old for old, _ in self._older), self._hosted.engine):
            engine.stop()
        self._older.clear()

    async def _drain(self) -> None:
        for held in tuple(self._older):
            engine, since = held
            if not engine.sessions and anyio.current_time() - since >= self._grace_s:
                await anyio.to_thread.run_sync(engine.stop)
                self._older.remove(held)

    def _load(self) -> Shard:
        """On a worker thread: the hosted tensors through files, as every other way of loading goes."""
        hosted, tensors = self._hosted, self._run.tensors()
        folder = Path(tempfile.mkdtemp(prefix="shoal-round-", dir=self._scratch))
        try:
            for file in sorted({entry.file for entry in tensors_of(hosted.manifest, hosted.span)}):
                held = [e.name for e in tensors_of(hosted.manifest, hosted.span) if e.file == file]
                write_arrays(folder / file, {name: tensors[self._sources[name]] for name in held})
            texts = self._model.text_folder or self._model.folder
            source = LocalModel(folder, hosted.manifest, hosted.model, text_folder=texts)
            shutil.copy(self._model.folder / "config.json", folder)
            return Shard.load(source, hosted.span, hosted.dtype, hosted.engine.shard.device)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sources(model: LocalModel, span: Span, tensors: Mapping[str, Array]) -> dict[str, str]:
    """Which of the run's tensors each hosted one is. raises: UsageError naming one that the run does not have"""
    tied = bool(parse_config(model.text_file("config.json"), "config.json").get("tie_word_embeddings"))
    found: dict[str, str] = {}
    for entry in tensors_of(model.manifest, span):
        if entry.name in tensors:
            if tuple(tensors[entry.name].shape) != entry.shape:
                raise UsageError(f"the run's {entry.name} has another shape than that of {model.manifest.name}")
            found[entry.name] = entry.name
            continue
        # a checkpoint may hold the tied head's matrix a second time; a trainer counts it once
        same = [name for name, array in tensors.items() if tuple(array.shape) == entry.shape and "embed" in name]
        if not tied or len(same) != 1:
            raise UsageError(f"the run does not train {entry.name}, so {model.manifest.name} cannot follow it")
        found[entry.name] = same[0]
    return found
