"""A member whose certificate runs out asks the owner for another one, in time and by itself."""

import time
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from shoal.node.node import Node, running_node
from shoal.node.node_loops import RENEW_BEFORE_S
from shoal.node.options import NodeOptions
from shoal.swarm.home import Home
from shoal.swarm.members import membership_file
from shoal.swarm.members.membership import CERTIFICATE_TTL_S, issue, read_certificate
from shoal.swarm.transports.p2pd import NetworkOptions

pytestmark = pytest.mark.network
LOOPBACK = NetworkOptions(host="127.0.0.1", nat=False)


def options(folder: Path, name: str, invite: str | None = None) -> NodeOptions:
    return NodeOptions(home=Home(folder / name), name=name, model=None, network=LOOPBACK, api_port=0, invite=invite)


def lifetime_s(node: Node, now: float) -> float:
    return read_certificate(node.setup.gate.certificate).expires_at - now


def test_a_certificate_that_runs_out_is_renewed_and_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
            owner = await stack.enter_async_context(running_node(options(tmp_path, "owner"), lambda _: None, tasks))
            assert owner.invites is not None
            now = time.time()  # noqa: TID251  certificates run out by the real clock
            invite = owner.invites.create(owner.full_addresses, now)
            joining = running_node(options(tmp_path, "member", invite), lambda _: None, tasks)
            member = await stack.enter_async_context(joining)

            await member.loops.renew(now)
            assert lifetime_s(member, now) == pytest.approx(CERTIFICATE_TTL_S, abs=60), "not before its time"
            first = member.setup.gate.certificate

            swarm, me = member.setup.swarm, member.identity.peer_id
            member.setup.gate.certificate = issue(owner.identity, swarm, me, "0" * 16, now, RENEW_BEFORE_S / 2)
            await member.loops.renew(now)
            assert lifetime_s(member, now) == pytest.approx(CERTIFICATE_TTL_S, abs=60)
            assert member.setup.gate.certificate != first

            await member.loops.look()
            kept = membership_file.load(member.options.home.swarm)
            assert kept is not None
            assert kept.certificate == member.setup.gate.certificate
            tasks.cancel_scope.cancel()

    anyio.run(scenario)
