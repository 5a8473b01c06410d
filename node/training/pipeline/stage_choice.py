"""`stage = "auto"`: a node takes the stage that has the fewest replicas, and says so before it loads anything."""

import random
from collections.abc import Mapping, Sequence

import anyio

from shoal.node.node import Node
from shoal.swarm.errors import Unavailable
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.run_identity import run_key

from .settings import place_run

LOOKS = 4
PAUSE_S = 1.0  # in which nodes that choose at the same moment hear of one another


def choose_stage(
    me: PeerId, there: Mapping[int, Sequence[PeerId]], mine: int | None, allowed: Sequence[int], draw: random.Random
) -> tuple[int, str]:
    """Pure. there: who holds each stage, without us; mine: what was chosen before. returns: the stage, and why

    Of nodes that have chosen the same, the one with the smallest PeerID stays and the others look again.
    """
    fewest = min(len(there.get(stage, ())) for stage in allowed)
    if mine is not None:
        rivals = there.get(mine, ())
        if len(rivals) <= fewest or me < min(rivals):
            return mine, f"{len(rivals)} other replicas"
    stage = draw.choice([stage for stage in allowed if len(there.get(stage, ())) == fewest])
    return stage, f"{fewest} other replicas, the fewest of all stages"


class StageChooser:
    """Announces the choice under the run's name until `leave`."""

    def __init__(self, node: Node, name: str, stages: int) -> None:
        self._node, self._name, self._stages = node, name, stages
        self._key = ""

    async def choose(self, given: int | None, allowed: Sequence[int]) -> tuple[int, str]:
        """given: what the config says; allowed: else one of these"""
        if given is not None:
            await self._announce(given)
            return given, "as asked for"
        stage: int | None = None
        reason = ""
        for _ in range(LOOKS):
            before = stage
            draw = random.Random(f"{self._node.transport.me} {self._name}")
            stage, reason = choose_stage(self._node.transport.me, await self._there(), stage, allowed, draw)
            if stage == before:
                break
            await self._announce(stage)
            await anyio.sleep(PAUSE_S)
        assert stage is not None
        return stage, reason

    def leave(self) -> None:
        self._node.runs.discard(self._key)

    async def _announce(self, stage: int) -> None:
        self._node.runs.discard(self._key)
        self._key = run_key(place_run(self._name, stage))
        self._node.runs.add(self._key)
        await self._node.loops.announce()

    async def _there(self) -> dict[int, list[PeerId]]:
        found = {}
        for stage in range(self._stages):
            try:
                records = await self._node.directory.trainers(run_key(place_run(self._name, stage)))
            except Unavailable:
                records = []
            found[stage] = [record.peer for record in records if record.peer != self._node.transport.me]
        return found
