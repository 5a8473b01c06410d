"""A model published at one node is fetched from it by another, which then serves it; liars are found out."""

import time
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import httpx
import pytest
from kv_samples import profile
from node.tiny_models import greedy, make_model, save_model

from shoal.node.node import Node, running_node
from shoal.node.options import NodeOptions
from shoal.node.swarm_models import find_given
from shoal.swarm.errors import UsageError
from shoal.swarm.home import Home
from shoal.swarm.manifest import KV_PROFILE
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.transports.p2pd import NetworkOptions

LOOPBACK = NetworkOptions(host="127.0.0.1", nat=False)


def options(folder: Path, name: str, model: str | None = None, invite: str | None = None) -> NodeOptions:
    return NodeOptions(
        home=Home(folder / name), name=name, model=model, layers="all" if model else None, dtype="float32",
        device="cpu", threads=1, network=LOOPBACK, api_port=0, invite=invite,
    )  # fmt: skip


@pytest.mark.network
def test_a_published_model_is_fetched_by_another_node_and_served(tmp_path: Path) -> None:
    made = make_model("llama", hidden_size=64, vocab_size=5000, num_hidden_layers=2)
    folder = save_model(made, tmp_path / "model")
    (folder / KV_PROFILE).write_bytes(profile().packed)

    async def scenario() -> None:
        async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
            owner: Node = await stack.enter_async_context(
                running_node(options(tmp_path, "owner"), lambda _: None, tasks)
            )
            facts = owner.options.home.read_facts()
            assert facts is not None
            key = {"authorization": f"Bearer {owner.options.home.api_key()}"}
            async with httpx.AsyncClient(base_url=f"{facts.api}/shoal/v1", headers=key) as api:
                assert (await api.post("/publications", json={"folder": "relative"})).status_code == 400
                answer = await api.post("/publications", json={"folder": str(folder)}, timeout=60)
                assert answer.status_code == 201, answer.text
                model = answer.json()["model"]
                assert (await api.get("/publications")).json()["publications"][0]["folder"] == str(folder)

                assert owner.invites is not None
                invite = owner.invites.create(owner.full_addresses, time.time())  # noqa: TID251
                wanted = options(tmp_path, "member", model[:16], invite)
                member = await stack.enter_async_context(running_node(wanted, lambda _: None, tasks))
                fetched = wanted.home.cache / "peers" / model
                assert (fetched / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
                assert (fetched / KV_PROFILE).read_bytes() == profile().packed
                request = TokenRequest(model, (5, 7, 11), 8, Sampling(temperature=0.0))
                async with member.driver.generate(request) as stream:
                    assert [choice.id async for choice in stream] == greedy(made, [5, 7, 11], 8)

                found = await find_given(member.calls, [owner.transport.me])
                assert [item.model for item in found] == [model]
                assert (await api.delete(f"/publications/{model}")).status_code == 200
                assert (await api.delete(f"/publications/{model}")).status_code == 404
                assert not await find_given(member.calls, [owner.transport.me])
                with anyio.fail_after(60):
                    while not await find_given(owner.calls, [member.transport.me]):  # noqa: ASYNC110
                        await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()

    anyio.run(scenario)


@pytest.mark.network
def test_a_model_that_nobody_publishes_is_told_and_a_list_outlives_a_restart(tmp_path: Path) -> None:
    folder = save_model(make_model("llama", num_hidden_layers=2, hidden_size=32), tmp_path / "model")

    async def publish() -> str:
        async with anyio.create_task_group() as tasks:
            async with running_node(options(tmp_path, "owner"), lambda _: None, tasks) as node:
                made = await node.publications.publish(str(folder))
            tasks.cancel_scope.cancel()
        return made.model

    async def again(model: str) -> None:
        async with anyio.create_task_group() as tasks:
            async with running_node(options(tmp_path, "owner"), lambda _: None, tasks) as node:
                with anyio.fail_after(60):
                    while not node.publications.published():  # noqa: ASYNC110  restored in the background
                        await anyio.sleep(0.02)
                assert [item.model for item in node.publications.published()] == [model]
            tasks.cancel_scope.cancel()

    anyio.run(again, anyio.run(publish))

    async def seek() -> None:
        async with anyio.create_task_group() as tasks:
            with pytest.raises(UsageError, match="no member of the swarm has a model"):
                async with running_node(options(tmp_path, "owner", "f" * 64), lambda _: None, tasks):
                    pass
            tasks.cancel_scope.cancel()

    anyio.run(seek)
