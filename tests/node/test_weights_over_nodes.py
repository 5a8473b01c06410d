"""A private swarm with no hub grows from one node that has the files: real nodes, daemons, and kill -9."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from node.cli.shoal_process import Ran, run
from node.tiny_models import greedy, make_model, save_model

from shoal.node.cli.node_api import NodeApi
from shoal.node.local_swarm import LocalNode, start_node
from shoal.node.node import Node, running_node
from shoal.node.node_events import DonorDropped, LayersChosen, NodeEvent, WeightsFetched, WeightsMissing
from shoal.node.options import BY_NEED, NodeOptions
from shoal.node.peer_folder import PeerFolder
from shoal.swarm.errors import Unavailable
from shoal.swarm.home import Home
from shoal.swarm.identifiers import ModelId
from shoal.swarm.manifest import CHUNK_BYTES
from shoal.swarm.routing.placement import Placement
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.transfer.block_transfer import MAX_PIECE_BYTES, MAX_WINDOW
from shoal.swarm.transports.p2pd import NetworkOptions
from shoal.swarm.units import Span

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]
LOOPBACK = NetworkOptions(host="127.0.0.1", nat=False)
SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "vocab_size": 4000}
SLOW_BYTE_S = 3e6


def options(
    home: Path,
    model: str | None,
    layers: str | None = None,
    *,
    invite: str | None = None,
    max_memory: str | None = None,
    upload_byte_s: float | None = 1e9,
) -> NodeOptions:
    return NodeOptions(
        home=Home(home), name=home.name, model=model, layers=layers, dtype="float32", device="cpu", threads=1,
        network=LOOPBACK, api_port=0, invite=invite, max_memory=max_memory, upload_byte_s=upload_byte_s,
    )  # fmt: skip


@asynccontextmanager
async def running(given: NodeOptions, report: Callable[[NodeEvent], None] = lambda _: None) -> AsyncIterator[Node]:
    async with anyio.create_task_group() as tasks:
        async with running_node(given, report, tasks) as node:
            yield node
        tasks.cancel_scope.cancel()


def invite_of(node: Node) -> str:
    assert node.invites is not None
    return node.invites.create(node.full_addresses, time.time())  # noqa: TID251


async def gives(node: Node, model: ModelId) -> None:
    with anyio.fail_after(30):
        while node.shelf.holdings(model) is None:  # noqa: ASYNC110  put there in the background
            await anyio.sleep(0.05)


def test_machines_without_files_join_with_no_model_named_and_take_what_is_lacking(tmp_path: Path) -> None:
    made = make_model("llama", **SHAPE)
    folder = save_model(made, tmp_path / "sparrow")
    told: dict[str, list[NodeEvent]] = {"ben": [], "cleo": []}

    async def scenario() -> None:
        async with running(options(tmp_path / "ana", str(folder), "embed+0:4")) as ana:
            model = next(iter(ana.hosted)).model
            await gives(ana, model)
            joiner = options(tmp_path / "ben", BY_NEED, invite=invite_of(ana), max_memory="40MB")
            async with running(joiner, told["ben"].append) as ben:
                await gives(ben, model)
                (held,) = ben.shelf.held()
                assert 0 < held.held_bytes < held.total_bytes
                request = TokenRequest(model, (5, 7, 11), 8, Sampling(temperature=0.0))
                async with ana.driver.generate(request) as stream:
                    assert [choice.id async for choice in stream] == greedy(made, [5, 7, 11], 8)
                third = options(tmp_path / "cleo", "sparrow", "all", invite=invite_of(ana))
                async with running(third, told["cleo"].append) as cleo:
                    fetched = cleo.options.home.cache / "peers" / model / "model.safetensors"
                    assert fetched.read_bytes() == (folder / "model.safetensors").read_bytes()
                    shown = await anyio.to_thread.run_sync(run, "models", "held", "--home", str(tmp_path / "cleo"))
                    assert shown.code == 0
                    assert "sparrow" in shown.out
                    assert "peers" in shown.out

    anyio.run(scenario)
    chosen = next(event for event in told["ben"] if isinstance(event, LayersChosen))
    assert "nobody holds" in chosen.reason
    givers = [event.givers for event in told["cleo"] if isinstance(event, WeightsFetched)]
    assert len(givers) == 1
    assert len(givers[0]) == 2, "the joiner that came before gives on what it has"


def test_a_running_node_takes_no_layers_whose_weights_nobody_has_any_more(tmp_path: Path) -> None:
    folder = save_model(make_model("llama", **SHAPE), tmp_path / "sparrow")
    told: list[NodeEvent] = []

    async def scenario() -> None:
        async with running(options(tmp_path / "ana", str(folder), "embed+0:4")) as ana:
            await gives(ana, next(iter(ana.hosted)).model)
            joiner = options(tmp_path / "ben", BY_NEED, invite=invite_of(ana), max_memory="40MB")
            async with running(joiner, told.append) as ben:
                held = next(iter(ben.hosted))
                everything = Placement(Span(0, SHAPE["num_hidden_layers"] + 2), "the test says so")
                ana.ask_to_stop("it leaves")
                await ana.loops.leave()
                await ana.transport.stop()
                with anyio.fail_after(40), pytest.raises(Unavailable):
                    await ben.hosting.move_to(everything)
                assert list(ben.hosted) == [held]
                assert ben.record().coming == ()

    anyio.run(scenario)
    assert not any(isinstance(event, WeightsMissing) for event in told), "it does not wait"


def begun_fetch(folder: Path, least_bytes: int) -> bool:
    return any(path.stat().st_blocks * 512 >= least_bytes for path in folder.glob("peers/*/*.safetensors"))


async def has_begun(node: LocalNode, least_bytes: int) -> None:
    with anyio.fail_after(60):
        while not begun_fetch(node.home.cache, least_bytes):
            assert node.process.poll() is None, node.errors
            await anyio.sleep(0.02)


def test_a_node_killed_in_mid_fetch_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = save_model(make_model("llama", **SHAPE), tmp_path / "sparrow")
    size = (folder / "model.safetensors").stat().st_size

    async def scenario() -> dict[str, Any]:
        given = options(tmp_path / "ana", str(folder), "embed+0:4", upload_byte_s=SLOW_BYTE_S)
        async with running(given) as ana:
            await gives(ana, next(iter(ana.hosted)).model)
            first = start_node(tmp_path, "ben", ["--layers", "all"], invite=invite_of(ana))
            try:
                await has_begun(first, size // 3)
            finally:
                first.kill()
                first.stop()
            again = start_node(tmp_path, "ben", ["--layers", "all"])
            try:
                return await anyio.to_thread.run_sync(again.wait_for, "weights_fetched")
            finally:
                await anyio.to_thread.run_sync(again.stop)

    fetched = anyio.run(scenario)
    assert fetched["kept_bytes"] >= size // 3 - 2 * CHUNK_BYTES
    assert fetched["fetched_bytes"] <= size - fetched["kept_bytes"] + 2 * CHUNK_BYTES
    kept = next((tmp_path / "ben" / "cache" / "peers").glob("*/model.safetensors"))
    assert kept.read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("fate", ["killed", "truncated"])
def test_a_donor_that_fails_in_mid_transfer_is_made_up_for(tmp_path: Path, fate: str) -> None:
    made = make_model("llama", **SHAPE)
    folder, copy = save_model(made, tmp_path / "sparrow"), save_model(made, tmp_path / "other" / "sparrow")
    size = (folder / "model.safetensors").stat().st_size
    told: list[NodeEvent] = []

    def has_given(donor: LocalNode) -> bool:
        """More than can be on its way at once: some of it has arrived."""
        given: int = NodeApi(donor.home, 60.0).get("/weights")["given_bytes"]
        return given > MAX_WINDOW * MAX_PIECE_BYTES

    async def fail(donor: LocalNode, fetcher: Path) -> None:
        with anyio.fail_after(60):
            while not begun_fetch(fetcher, size // 4):  # noqa: ASYNC110  the disk has no hook
                await anyio.sleep(0.02)
            while not await anyio.to_thread.run_sync(has_given, donor):  # noqa: ASYNC110  another process
                await anyio.sleep(0.05)
        if fate == "killed":
            donor.process.kill()
        else:
            with (copy / "model.safetensors").open("r+b") as file:
                file.truncate(CHUNK_BYTES // 2)

    async def scenario() -> None:
        async with running(options(tmp_path / "ana", None, upload_byte_s=SLOW_BYTE_S)) as ana:
            published = await ana.publications.publish(str(folder))
            limit = ["--gateway-only", "--upload-limit", f"{SLOW_BYTE_S / 1e6} MB/s", "--api-port", "0"]
            donor = start_node(tmp_path, "dora", limit, invite=invite_of(ana))
            try:
                await anyio.to_thread.run_sync(donor.wait_for, "ready")
                api = NodeApi(donor.home, 60.0)
                await anyio.to_thread.run_sync(api.ask, "POST", "/publications", {"folder": str(copy)})
                wanted = options(tmp_path / "ben", published.model, "all", invite=invite_of(ana))
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(fail, donor, wanted.home.cache)
                    async with running(wanted, told.append) as ben:
                        request = TokenRequest(published.model, (5, 7, 11), 4, Sampling(temperature=0.0))
                        async with ben.driver.generate(request) as stream:
                            assert [choice.id async for choice in stream] == greedy(made, [5, 7, 11], 4)
            finally:
                await anyio.to_thread.run_sync(donor.stop)

    anyio.run(scenario)
    (fetched,) = [event for event in told if isinstance(event, WeightsFetched)]
    assert len(fetched.givers) == 2
    dropped = [event for event in told if isinstance(event, DonorDropped)]
    assert not any(event.fault for event in dropped), "a file that is shorter than it was is no lie"


def test_weights_are_fetched_held_and_dropped_by_command(tmp_path: Path) -> None:
    folder = save_model(make_model("llama", **SHAPE), tmp_path / "sparrow")
    home = ["--home", str(tmp_path / "ben")]

    async def scenario() -> None:
        async with running(options(tmp_path / "ana", None)) as ana:
            published = await ana.publications.publish(str(folder))
            async with running(options(tmp_path / "ben", None, invite=invite_of(ana))):

                async def shoal(*arguments: str) -> Ran:
                    return await anyio.to_thread.run_sync(run, *arguments, *home)

                unknown = await shoal("models", "fetch", "no such model")
                assert unknown.code == 2
                assert "no member of the swarm has a model no such model, and there is no folder" in unknown.complaint
                some = await shoal("models", "fetch", "sparrow", "--layers", "embed+0:2", "--json")
                (event,) = some.events
                assert 0 < event["held_bytes"] < event["total_bytes"]
                assert event["model"] == published.model
                wrong = await shoal("models", "fetch", "sparrow", "--layers", "0:99")
                assert wrong.code == 2
                assert "out of range" in wrong.complaint
                rest = await shoal("models", "fetch", published.model[:12])
                assert rest.out.strip() == published.model
                listed = await shoal("models", "held", "--json")
                assert [e["held_bytes"] for e in listed.events if e["event"] == "held"] == [event["total_bytes"]]
                assert (await shoal("models", "drop", "swallow")).code == 2
                assert (await shoal("models", "drop", "sparrow")).code == 0
                assert PeerFolder.of(tmp_path / "ben" / "cache", published.model).manifest() is None
                again = await shoal("models", "held")
                assert "no weights are here" in again.err

    anyio.run(scenario)


def test_a_name_that_several_models_have_is_asked_back(tmp_path: Path) -> None:
    one = save_model(make_model("llama", num_hidden_layers=2), tmp_path / "one" / "sparrow")
    other = save_model(make_model("llama", num_hidden_layers=2, seed=8), tmp_path / "other" / "sparrow")

    async def scenario() -> None:
        async with running(options(tmp_path / "ana", None)) as ana:
            models = [(await ana.publications.publish(str(folder))).model for folder in (one, other)]
            assert len(set(models)) == 2
            joined = await anyio.to_thread.run_sync(
                run, "join", invite_of(ana), "sparrow", "--home", str(tmp_path / "ben"), "--host", "127.0.0.1",
                "--api-port", "0",
            )  # fmt: skip
            assert joined.code == 2
            assert "several models sparrow; write the id" in joined.complaint
            assert all(model[:16] in joined.complaint for model in models)

    anyio.run(scenario)
    assert msgspec.json.decode((tmp_path / "ben" / "swarm.json").read_bytes()), "the invite is not lost"
