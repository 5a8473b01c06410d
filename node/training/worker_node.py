"""`shoal train` with a node of its own: one that hosts nothing, with a training in it.

The network comes up while model and data are prepared on a thread. Whatever ends the training, what it has is saved,
and the node leaves in order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from shoal.node.node import Node, running_node
from shoal.node.node_events import NodeEvent
from shoal.node.options import NodeOptions
from shoal.swarm.errors import DaemonDied

from . import events
from .worker_link import measured_uplink
from .worker_member import Preparation, Report, TrainingOptions, other_nodes

if TYPE_CHECKING:
    from .worker_parts import Prepared


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    training: TrainingOptions
    node: NodeOptions


async def plan_only(
    options: TrainerOptions, report: Report, tell_node: Callable[[NodeEvent], None], *, member: bool
) -> None:
    """`--dry-run`: the plan, with the link measured where other nodes of the swarm answer.

    member: of a swarm; else there is nobody to measure with, and none is founded for that
    raises: ShoalError
    """
    async with anyio.create_task_group() as tasks:
        preparation = Preparation()
        stage = options.training.file.config.pipeline.stage
        preparation.take_stage(0 if stage == "auto" else stage)
        tasks.start_soon(preparation.run, options.training.file, options.training.cache, report)
        if not member:
            report(await _plan(options, await preparation.result(), None))
            tasks.cancel_scope.cancel()
            return
        async with running_node(options.node, tell_node, tasks) as node:
            uplink = await measured_uplink(node.calls, await other_nodes(node))
            report(await _plan(options, await preparation.result(), uplink))
            node.stop_reason = "the plan is made"
        tasks.cancel_scope.cancel()


async def _plan(options: TrainerOptions, ready: "Prepared", uplink_bit_s: float | None) -> events.Planned:
    from .worker_parts import run_spec
    from .worker_plan import planned, resolved, step_seconds

    step_s = await anyio.to_thread.run_sync(step_seconds, ready)
    config = resolved(options.training.file, ready, step_s, uplink_bit_s)
    ready.steps.close()
    return planned(ready, config, run_spec(ready, config), uplink_bit_s, step_s)


async def run_trainer(
    options: TrainerOptions,
    report: Report,
    tell_node: Callable[[NodeEvent], None],
    on_running: Callable[[Node], None] = lambda _: None,
) -> events.Finished:
    """Train until the rounds are done or somebody asks the node to stop. raises: ShoalError"""
    async with anyio.create_task_group() as tasks:
        preparation = Preparation()
        tasks.start_soon(preparation.run, options.training.file, options.training.cache, report)
        async with running_node(options.node, tell_node, tasks) as node:
            on_running(node)
            tasks.start_soon(_watch_daemon, node)
            finished = await node.trainings.train(options.training, report, preparation)
            node.stop_reason = finished.reason
            if node.transport.is_dead:
                raise DaemonDied("the node's own libp2p daemon died; start again with --resume")
        tasks.cancel_scope.cancel()
    report(finished)
    return finished


async def _watch_daemon(node: Node) -> None:
    await node.transport.died()
    node.ask_to_stop("the libp2p daemon died")
