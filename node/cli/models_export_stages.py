"""`shoal models export` for a run in stages: what is not here is fetched by a node that is up for that alone."""

from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import msgspec

from shoal.node.training.checkpoints.snapshot import Snapshot
from shoal.node.training.pipeline.stage_export import PipelineNote, assembled, fetched_stages, local_stages
from shoal.swarm.errors import ShoalError, UsageError
from shoal.swarm.home import Home
from shoal.swarm.members.membership_file import load as load_membership

from .node_api import running_api
from .node_choice import node_options
from .output import Output

LOOKS, PAUSE_S = 8, 1.0  # for peers whose records have not come yet


def export_stages(
    run: Path, note: PipelineNote, out: Path, model: str | None, dtype: str, home: Home, output: Output
) -> None:
    """raises: UsageError, OutOfMemory, Unavailable"""
    from shoal.node.training.model_export import export_model
    from shoal.node.training.worker_model import find_model

    stages = local_stages(run, note)
    missing = [stage for stage in range(note.stages) if stage not in stages]
    if missing and load_membership(home.swarm) is not None:
        if running_api(home) is not None:
            raise UsageError(
                f"stage {', '.join(map(str, missing))} must be fetched from other nodes, and a node runs in "
                f"{home.root} already: stop it first, or export in a home of its own that has joined the swarm"
            )
        output.note(f"fetching stage {', '.join(map(str, missing))} from other nodes")
        stages |= anyio.run(_fetched, home, note, missing)
    parameters = assembled(stages, note)
    texts = {**find_model(model or note.source, "random", home.cache).texts}
    texts["config.json"] = msgspec.json.format(msgspec.json.encode(note.config), indent=2)
    export_model(parameters, texts, out, dtype)
    rounds = {str(stage): snapshot.round for stage, snapshot in sorted(stages.items())}
    output.event("exported", folder=str(out), rounds=rounds, dtype=dtype)
    output.line(str(out))
    told = ", ".join(f"{stage}: {round_}" for stage, round_ in rounds.items())
    output.note(f"the model after these rounds of its stages: {told}; `shoal up {out}` serves it")


async def _fetched(home: Home, note: PipelineNote, missing: list[int]) -> dict[int, Snapshot]:
    from shoal.node.node import running_node

    options = node_options(home, {"gateway_only": True, "api_port": 0}, None)
    found: dict[int, Snapshot] = {}
    failure: ShoalError | None = None
    with TemporaryDirectory(prefix="export-", dir=_made(home.cache)) as folder:
        async with anyio.create_task_group() as tasks:
            try:
                async with running_node(options, lambda _: None, tasks) as node:
                    for _ in range(LOOKS):
                        left = [stage for stage in missing if stage not in found]
                        found |= await fetched_stages(node, note, left, Path(folder))
                        if len(found) == len(missing):
                            break
                        await anyio.sleep(PAUSE_S)
            except ShoalError as error:
                failure = error
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
