"""Whether the nodes of all stages mean the same pipeline: asked before anything is trained.

Replicas of one stage agree on their own run besides, as in `worker_agreement`; here is what all stages have in common.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import anyio
import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import Refused, ShoalError, VersionMismatch
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls

from .stage_start import PreparedStage

METHOD = "/shoal/pipeline-identity/1"
ASK_S = 3.0
MAX_BYTES = 64 << 10


class IdentityAnswer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """settings: JSON of `pipeline_settings`"""

    stage: int
    settings: str


_answers = Canonical(IdentityAnswer, "an answer about a pipeline", MAX_BYTES)


def pipeline_settings(ready: PreparedStage) -> dict[str, Any]:
    """What all nodes of all stages must agree on."""
    config, plan = ready.config, ready.plan
    return {
        "name": ready.name,
        "model": ready.identity,
        "stages": [list(msgspec.to_builtins(span)) for span in plan.spans],
        "tied": plan.tied,
        "wire": config.pipeline.wire,
        "sequence": config.data.sequence,
        "isolate": config.data.isolate,
        "batch": config.batch.sequences,
        "strategy": msgspec.to_builtins(config.strategy),
        "inner": msgspec.to_builtins(config.inner),
        "seed": config.seed,
    }


def pipeline_id(settings: dict[str, Any]) -> str:
    """Hex sha256."""
    return hashlib.sha256(b"shoal pipeline 1\0" + msgspec.json.encode(settings, order="deterministic")).hexdigest()


async def serve_identity(calls: MemberCalls, ready: PreparedStage) -> None:
    settings = msgspec.json.encode(pipeline_settings(ready), order="deterministic").decode()

    async def answer(_: PeerId, body: bytes) -> bytes:
        if body != ready.name.encode():
            raise Refused("this peer trains in another run")
        return _answers.encode(IdentityAnswer(ready.stage, settings))

    await calls.answer(METHOD, answer)


async def check_identity(calls: MemberCalls, peers: Iterable[PeerId], ready: PreparedStage) -> None:
    """raises: VersionMismatch naming what differs when a peer means another pipeline by this name"""
    mine = msgspec.json.decode(msgspec.json.encode(pipeline_settings(ready)))
    problems: list[str] = []

    async def ask(peer: PeerId) -> None:
        try:
            answer = _answers.decode(await calls.call(peer, METHOD, ready.name.encode(), ASK_S))
            theirs = msgspec.json.decode(answer.settings, type=dict)
        except (ShoalError, msgspec.MsgspecError):
            return  # it trains nothing, or something else
        named = [key for key in mine if theirs.get(key) != mine[key]]
        if named:
            problems.append(f"{peer} trains another run by the name {ready.name!r}: {', '.join(named)} differ")

    async with anyio.create_task_group() as tasks:
        for peer in peers:
            tasks.start_soon(ask, peer)
    if problems:
        raise VersionMismatch(sorted(problems)[0])
