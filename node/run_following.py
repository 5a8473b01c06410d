"""`shoal up MODEL --follow RUN`: find the peers of a training run, learn what they agreed on, and follow them.

What a follower needs is in the run's own agreement (`RunSpec`) and the model's configuration. It holds the outer
parameters and the outer optimiser of the whole model in memory, 8 to 12 bytes for each parameter, as the hash that
vouches for a round is over all of them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec
import numpy as np
import structlog
from safetensors import SafetensorError, safe_open

from shoal.compression.update_codec import Values
from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import ShoalError, Unavailable, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.catch_up import CatchUp
from shoal.swarm.rounds.catch_up_fetch import CatchUpLimits
from shoal.swarm.rounds.delta_log import DeltaLog
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.run_identity import run_id, run_key

from .following import PERIOD_S, FollowedModel
from .hosted_models import HostedModel
from .manifest_builder import parse_config
from .model_source import LocalModel
from .node_events import NodeEvent, Warned
from .training.checkpoints.replica import OuterReplica
from .training.checkpoints.store import CheckpointStore
from .training.model_export import model_shapes
from .training.parameter_layout import ParameterLayout
from .training.strategies.outer_parameters import OuterParameters
from .training.strategies.settings import StrategySettings
from .training.worker_agreement import ASK_S, MAX_BYTES, METHOD, Answer, Question

if TYPE_CHECKING:
    from .node import Node

log = structlog.get_logger(__name__)
_questions = Canonical(Question, "a question about a run", 4096)
_answers = Canonical(Answer, "an answer about a run", MAX_BYTES)


async def follow_run(node: "Node", run: str, report: Callable[[NodeEvent], None], period_s: float = PERIOD_S) -> None:
    """Until the node ends, or it proves that the run does not train what is hosted here."""
    hosted = next(iter(node.hosted), None)
    if hosted is None:
        return
    seeker = _Seeker(node, run)
    try:
        spec = await seeker.agreed(period_s)
        replica, rounds, limits = await anyio.to_thread.run_sync(_prepared, node, hosted, spec)
        followed = FollowedModel(node.hosted, hosted, replica)
    except (UsageError, ShoalError, ValueError) as error:
        report(Warned(f"the run {run} cannot be followed: {error}"))
        return
    folder = node.options.home.cache / "followed" / run_id(spec)[:16]

    def catch_up() -> CatchUp:
        return CatchUp(node.calls, run_id(spec), replica, rounds, folder / "incoming", limits)

    try:
        await followed.follow(catch_up, partial(seeker.peers, spec), period_s)
    except ShoalError as error:  # a full disk, a model that has become another one
        report(Warned(f"the run {run} is followed no longer: {error}"))
    finally:
        followed.stop()


class _Seeker:
    """Asks the members that say they train in a run what they mean by it."""

    def __init__(self, node: "Node", run: str) -> None:
        self._node, self._run, self._key = node, run, run_key(run)

    async def agreed(self, period_s: float) -> RunSpec:
        """What most of the run's peers mean; waits until there are some."""
        while True:
            answers = await self._answers()
            if answers:
                return Counter(answers.values()).most_common(1)[0][0]
            log.info("run_not_found", run=self._run)
            await anyio.sleep(period_s)

    async def peers(self, spec: RunSpec) -> Sequence[PeerId]:
        return [peer for peer, theirs in (await self._answers()).items() if theirs == spec]

    async def _answers(self) -> dict[PeerId, RunSpec]:
        answers: dict[PeerId, RunSpec] = {}
        question = _questions.encode(Question(self._run))

        async def ask(peer: PeerId) -> None:
            try:
                answers[peer] = _answers.decode(await self._node.calls.call(peer, METHOD, question, ASK_S)).spec
            except ShoalError:
                return  # it trains no longer

        try:
            records = await self._node.directory.nodes()
        except Unavailable:
            records = []
        async with anyio.create_task_group() as tasks:
            for record in records:
                if self._key in record.runs and record.peer != self._node.transport.me:
                    tasks.start_soon(ask, record.peer)
        return answers


def _prepared(node: "Node", hosted: HostedModel, spec: RunSpec) -> tuple[OuterReplica, DeltaLog, CatchUpLimits]:
    """raises: UsageError, OutOfMemory, ValueError for a run of another model"""
    if hosted.local is None:
        raise UsageError("what is hosted here was not loaded from files")
    config = parse_config(hosted.local.text_file("config.json"), "config.json")
    layout = ParameterLayout.of(model_shapes(config))
    if sum(spec.fragments) != layout.count:
        raise UsageError(f"it trains {sum(spec.fragments)} parameters, and {hosted.manifest.name} has {layout.count}")
    try:
        settings = msgspec.json.decode(spec.strategy, type=StrategySettings)
    except msgspec.MsgspecError as error:
        raise UsageError(f"its strategy is of another version of shoal ({error})") from error
    outer = OuterParameters(settings.outer, spec, _initial(hosted.local, layout), layout.undecayed())
    folder = node.options.home.cache / "followed" / run_id(spec)[:16]
    store = CheckpointStore(folder / "checkpoints")
    replica = OuterReplica(outer, run_id(spec), layout, store)
    return replica, DeltaLog(folder / "rounds", run_id(spec)), CatchUpLimits.of(spec)


def _initial(model: LocalModel, layout: ParameterLayout) -> Values:
    """The parameters that are here: where they are the run's first ones, its rounds alone lead on from them.

    Zeros where files are missing; the way then begins with a checkpoint.
    """
    values = np.zeros(layout.count, np.float32)
    files = {entry.name: model.folder / entry.file for entry in model.manifest.tensors}
    if any(place.name not in files or not files[place.name].is_file() for place in layout.places):
        return values
    try:
        for place in layout.places:
            with safe_open(files[place.name], framework="pt") as file:
                tensor = file.get_tensor(place.name)
            values[place.start : place.stop] = tensor.float().reshape(-1).numpy()
    except (OSError, SafetensorError, ValueError):
        return np.zeros(layout.count, np.float32)
    return values
