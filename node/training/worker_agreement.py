"""Whether the peers of a run mean the same run: asked before the first round, so that a difference is told at once.

What was `auto` in the config is settled here too: whoever comes later takes over what the peers that are there have
chosen, and of two that start together the one with the smaller PeerID decides.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import Refused, ShoalError, VersionMismatch
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.exchange import OutOfStep, RunSpec
from shoal.swarm.rounds.run_identity import differences

from .config import ConfigFile, TrainingConfig
from .strategies.settings import StrategySettings
from .worker_parts import Prepared, run_spec, settings_with

METHOD = "/shoal/training/1"
ASK_S = 3.0
MAX_BYTES = 64 << 10


class Question(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str  # of the run


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """config: hash of what peers agree on, before `auto` is settled; round: that the peer takes part in next"""

    spec: RunSpec
    config: str
    round: int


_questions = Canonical(Question, "a question about a run", 4096)
_answers = Canonical(Answer, "an answer about a run", MAX_BYTES)


def agreed_settings(file: ConfigFile, prepared: Prepared) -> dict[str, Any]:
    """What stands in the config and must be the same at all peers, with `auto` where it is not settled yet."""
    config = file.config
    strategy: dict[str, Any] = msgspec.to_builtins(config.strategy)
    strategy |= dict.fromkeys(file.auto, "auto")
    pipeline = config.pipeline
    return {
        **({"stages": list(pipeline.spans) or pipeline.stages} if pipeline.cut else {}),
        "model": prepared.model_hash,
        "data": prepared.data.order.digest,
        "sequence": config.data.sequence,
        "isolate": config.data.isolate,
        "batch": config.batch.sequences,
        "seed": config.seed,
        "strategy": strategy,
        "inner": msgspec.to_builtins(config.inner),
        "group": {k: v for k, v in msgspec.to_builtins(config.group).items() if k != "patience"},
    }


def settings_hash(settings: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(settings, order="deterministic")).hexdigest()


async def ask_run(calls: MemberCalls, name: str, peers: Iterable[PeerId]) -> dict[PeerId, Answer]:
    """What those say that train in a run of this name."""
    answers: dict[PeerId, Answer] = {}
    question = _questions.encode(Question(name))

    async def ask(peer: PeerId) -> None:
        try:
            answers[peer] = _answers.decode(await calls.call(peer, METHOD, question, ASK_S))
        except ShoalError:
            return  # it trains nothing, or something else

    async with anyio.create_task_group() as tasks:
        for peer in peers:
            tasks.start_soon(ask, peer)
    return answers


class Agreement:
    """The run as this peer means it, told to whoever asks. settings: agreed ones; config, spec: with `auto` settled"""

    def __init__(self, calls: MemberCalls, me: PeerId, file: ConfigFile, prepared: Prepared) -> None:
        self._calls, self._me, self._prepared = calls, me, prepared
        self.settings = agreed_settings(file, prepared)
        self._hash = settings_hash(self.settings)
        self._auto = bool(file.auto)
        self.config: TrainingConfig = file.config
        self.spec: RunSpec = run_spec(prepared, file.config)
        self.round: Callable[[], int] = lambda: 0  # that we take part in next

    def settle(self, config: TrainingConfig) -> None:
        """Our own choice for what was `auto`."""
        self.config, self.spec = config, run_spec(self._prepared, config)

    async def serve(self) -> None:
        async def answer(_: PeerId, body: bytes) -> bytes:
            if _questions.decode(body).name != self.spec.name:
                raise Refused("this peer trains in another run")
            return _answers.encode(Answer(self.spec, self._hash, self.round()))

        await self._calls.answer(METHOD, answer)

    async def ask(self, peers: Iterable[PeerId]) -> dict[PeerId, Answer]:
        """Those that train in a run of this name."""
        return await ask_run(self._calls, self.spec.name, [peer for peer in peers if peer != self._me])

    def heed(self, answers: dict[PeerId, Answer]) -> bool:
        """Take over what others have settled. returns: whether there was anything to take over

        raises: VersionMismatch when a peer means another run by this name
        """
        for peer, answer in sorted(answers.items()):
            if answer.config != self._hash or (answer.spec != self.spec and not self._auto):
                what = differences(self.spec, answer.spec) or "the settings differ"
                raise VersionMismatch(f"{peer} trains another run by the name {self.spec.name!r}: {what}")
        if not self._auto or self.round():
            return False
        before = [peer for peer, answer in answers.items() if answer.round]
        leaders = sorted(before or [peer for peer in answers if peer < self._me])
        if not leaders or answers[leaders[0]].spec == self.spec:
            return False
        try:
            theirs = msgspec.json.decode(answers[leaders[0]].spec.strategy, type=StrategySettings)
            config = settings_with(self.config, interval=theirs.interval, preset=theirs.preset)
        except (msgspec.MsgspecError, ValueError) as error:
            raise VersionMismatch(f"{leaders[0]} has settled on a strategy that cannot be read: {error}") from error
        self.settle(config)
        if self.spec != answers[leaders[0]].spec:
            raise VersionMismatch(f"{leaders[0]} trains another run by the name {self.spec.name!r}")
        return True

    def behind(self, answers: dict[PeerId, Answer]) -> OutOfStep | None:
        """What to catch up with: peers of this run are further than we are. None: nobody is"""
        further = {peer: a.round for peer, a in answers.items() if a.spec == self.spec and a.round > self.round()}
        if not further:
            return None
        round_ = max(further.values())
        holders = sorted(peer for peer, its in further.items() if its == round_)
        return OutOfStep(f"peers of the run are at round {round_}, this one at {self.round()}", round_, holders)
