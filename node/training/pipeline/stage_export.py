"""The model of a run in stages, put together from the checkpoints of all of them: those here, and those that replicas
of the other stages still give away.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.node.node import Node
from shoal.node.training.checkpoints.reader import checkpoint_at, read_shared
from shoal.node.training.checkpoints.snapshot import Snapshot
from shoal.node.training.checkpoints.tensor_file import Array
from shoal.node.training.worker_agreement import ask_run
from shoal.swarm.errors import MalformedMessage, ShoalError, Unavailable, UsageError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.catch_up_fetch import Astray, CatchUpFetch, CatchUpLimits
from shoal.swarm.rounds.catch_up_messages import METHOD, QUERIES, CatchUpQuery, CheckpointOffer, read_offer
from shoal.swarm.rounds.catch_up_plan import CheckpointSource
from shoal.swarm.rounds.delta_entry import STATE_BYTES
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.run_identity import run_id, run_key
from shoal.swarm.transfer.block_transfer_fetch import BlockFetcher, Threads

from .settings import stage_run

NOTE = "pipeline.json"  # in each stage's folder: what the whole is
ASK_S = 5.0


@dataclass(frozen=True, slots=True)
class PipelineNote:
    """config: of the model; source: where the run took it from"""

    name: str
    stages: int
    source: str
    config: dict[str, Any]


def write_note(folder: Path, note: PipelineNote) -> None:
    """raises: UsageError when the folder cannot be used"""
    told = {"name": note.name, "stages": note.stages, "source": note.source, "config": note.config}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NOTE).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"cannot use the folder {folder}: {error.strerror}") from error


def read_note(run: Path) -> PipelineNote | None:
    """None for the folder of a run in one piece. run: holds stage-0, ... raises: UsageError for a damaged note"""
    for path in sorted(run.glob(f"stage-*/{NOTE}")):
        try:
            told = json.loads(path.read_text("utf-8"))
            return PipelineNote(str(told["name"]), int(told["stages"]), str(told["source"]), dict(told["config"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is damaged: {error}") from error
    return None


def local_stages(run: Path, note: PipelineNote) -> dict[int, Snapshot]:
    """The newest checkpoint of each stage that is here. raises: UsageError when one is damaged and none is whole"""
    found = {stage: checkpoint_at(run / f"stage-{stage}") for stage in range(note.stages)}
    return {stage: latest.snapshot for stage, latest in found.items() if latest is not None}


def assembled(stages: Mapping[int, Snapshot], note: PipelineNote) -> dict[str, Array]:
    """The parameters of the whole model by name. raises: UsageError naming the stages that are missing"""
    missing = [stage for stage in range(note.stages) if stage not in stages]
    if missing:
        named = ", ".join(map(str, missing))
        raise UsageError(
            f"no checkpoint of stage {named} of {note.name} is here, and nobody gives one away: start the export on a "
            "node of the swarm while a replica of each stage is up, or copy their stage folders into the run's folder"
        )
    parameters: dict[str, Array] = {}
    for snapshot in stages.values():
        parameters |= snapshot.parameters
    return parameters


async def fetched_stages(node: Node, note: PipelineNote, wanted: Sequence[int], into: Path) -> dict[int, Snapshot]:
    """Those of the wanted stages that peers give away. raises: OutOfMemory"""
    found: dict[int, Snapshot] = {}
    for stage in wanted:
        name = stage_run(note.name, stage)
        try:
            records = await node.directory.trainers(run_key(name))
        except Unavailable:
            continue
        peers = [record.peer for record in records if record.peer != node.transport.me]
        for peer, answer in (await ask_run(node.calls, name, peers)).items():
            snapshot = await _fetched(node, peer, answer.spec, into)
            if snapshot is not None:
                found[stage] = snapshot
                break
    return found


async def _fetched(node: Node, peer: PeerId, spec: RunSpec, into: Path) -> Snapshot | None:
    """One replica's newest checkpoint; None when it has none, or sends something else. raises: OutOfMemory"""
    run = run_id(spec)
    query = QUERIES.encode(CatchUpQuery(run, bytes(STATE_BYTES)))
    try:
        offers = read_offer(await node.calls.call(peer, METHOD, query, ASK_S)).checkpoints
        if not offers:
            return None
        newest: CheckpointOffer = max(offers, key=lambda offer: offer.round)
        threads = Threads()
        fetch = CatchUpFetch(BlockFetcher(node.calls, threads=threads), run, into, CatchUpLimits.of(spec), threads)
        listing, folder = await fetch.checkpoint(CheckpointSource(newest, (peer,)))
        snapshot = read_shared(folder, listing)
    except (Astray, MalformedMessage, Unavailable, ValueError):
        return None
    except ShoalError as error:
        if error.exit_code == 6:  # the disk is full
            raise
        return None
    return snapshot if snapshot.run == run else None
