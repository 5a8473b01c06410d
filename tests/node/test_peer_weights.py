"""Weights of a model from members that hold parts, lie, vanish or come later: in virtual time, with real files."""

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file
from swarm.bundles import AtOnce, member, read_at_once

from shoal.node.model_source import LocalModel, from_folder
from shoal.node.model_units import tensors_of
from shoal.node.node_events import DonorDropped, NodeEvent, WeightsFetched, WeightsMissing
from shoal.node.peer_folder import PeerFolder
from shoal.node.peer_model import kept_model, manifest_problem, peer_model
from shoal.node.peer_weights import PeerWeights
from shoal.node.weight_shelf import WeightShelf
from shoal.swarm import manifest as manifests
from shoal.swarm.errors import OutOfMemory, RemoteFault, ShoalError, Unavailable
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import CHUNK_BYTES, FileEntry
from shoal.swarm.transfer.blobs import serve_blobs
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions
from shoal.swarm.units import Span, whole

pytestmark = pytest.mark.anyio
LINKS = Conditions(latency_s=(0.01, 0.02), bandwidth_byte_s=6.25e6)
LAYERS, FRONT, BACK = 6, Span(0, 3), Span(5, 8)
JOINER, ALICE, BOB, CAROL = (PeerId(name) for name in ("joiner", "alice", "bob", "carol"))


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """39 MB in two files; nothing of it is ever computed with."""
    made = tmp_path_factory.mktemp("weights") / "sparrow"
    made.mkdir()
    draw = np.random.default_rng(0)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": LAYERS}
    config |= {"hidden_size": 512, "vocab_size": 4096, "max_position_embeddings": 64}
    (made / "config.json").write_text(json.dumps(config))
    tensors = {"model.embed_tokens.weight": (4096, 512), "lm_head.weight": (4096, 512), "model.norm.weight": (512,)}
    tensors |= {f"model.layers.{n}.mlp.weight": (2000, 512) for n in range(LAYERS)}
    arrays = {name: draw.standard_normal(shape, np.float32) for name, shape in tensors.items()}
    names = {
        name: f"model-{1 + ('layers.4' in name or 'layers.5' in name or 'head' in name)}.safetensors" for name in arrays
    }
    for file in set(names.values()):
        save_file({name: arrays[name] for name in arrays if names[name] == file}, made / file)
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return made


class Swarm:
    """Members that give a folder, and a joiner that fetches from those that are `there`."""

    def __init__(self, network: MemoryNetwork, tmp_path: Path) -> None:
        self.network, self.tmp_path = network, tmp_path
        self.there: list[PeerId] = []
        self.calls = member(network.join(JOINER))
        self.shelves: dict[PeerId, WeightShelf] = {}
        self.told: list[NodeEvent] = []

    async def donor(self, peer: PeerId, local: LocalModel, shelf: WeightShelf | None = None) -> WeightShelf:
        shelf = shelf or WeightShelf(1e9, read_at_once)
        calls = member(self.network.join(peer))
        await shelf.put(local, "hosted")
        await shelf.serve(calls)
        await serve_blobs(calls, shelf.blobs)
        self.there.append(peer)
        self.shelves[peer] = shelf
        return shelf

    @property
    def cache(self) -> Path:
        return self.tmp_path / "cache"

    async def fetch(self, model: ModelId, span: Span) -> PeerFolder:
        local = await peer_model(self.calls, lambda: self.there, model, self.cache)
        folder = PeerFolder(local.folder)
        weights = PeerWeights(
            self.calls, lambda: self.there, folder, model, local.manifest, self.told.append, threads=AtOnce()
        )
        await weights.fetch(span)
        return folder

    def heard(self, kind: type[NodeEvent]) -> list[NodeEvent]:
        return [event for event in self.told if isinstance(event, kind)]


def local_of(folder: Path, cache: Path) -> LocalModel:
    return from_folder(folder, cache, "sparrow")


def assert_holds(kept: PeerFolder, folder: Path, span: Span) -> None:
    """Every tensor of the span lies in the fetched files, byte for byte."""
    from safetensors import safe_open

    manifest = kept.manifest()
    assert manifest is not None
    for entry in tensors_of(manifest, span):
        with safe_open(kept.folder / entry.file, "np") as ours, safe_open(folder / entry.file, "np") as theirs:
            assert np.array_equal(ours.get_tensor(entry.name), theirs.get_tensor(entry.name))


async def test_a_span_needs_only_the_chunks_of_its_tensors(folder: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        for peer in (ALICE, BOB, CAROL):
            await swarm.donor(peer, local)
        kept = await swarm.fetch(local.model_id, FRONT)
    assert_holds(kept, folder, FRONT)
    (fetched,) = swarm.heard(WeightsFetched)
    assert isinstance(fetched, WeightsFetched)
    tensors = sum(4 * int(np.prod(entry.shape)) for entry in tensors_of(local.manifest, FRONT))
    assert tensors <= fetched.fetched_bytes <= tensors + 4 * CHUNK_BYTES
    assert set(fetched.givers) == {ALICE, BOB, CAROL}
    assert not (kept.folder / "model-2.safetensors").exists()


async def test_parts_at_several_members_make_a_whole_that_is_given_on(folder: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        first, second = Swarm(network, tmp_path / "first"), local_of(folder, tmp_path)
        await first.donor(ALICE, second)
        await first.fetch(second.model_id, FRONT)
        front = kept_model(PeerFolder.of(first.cache, second.model_id))
        await first.fetch(second.model_id, Span(3, 8))  # what it has since
        rest = kept_model(PeerFolder.of(first.cache, second.model_id))
        assert front is not None
        assert rest is not None
        network.kill(ALICE)
        network.kill(JOINER)
    async with MemoryNetwork(conditions=LINKS) as network:
        late = Swarm(network, tmp_path / "late")
        await late.donor(BOB, rest)
        kept = await late.fetch(second.model_id, Span(0, 8))
    assert_holds(kept, folder, Span(0, 8))
    for file in ("model-1.safetensors", "model-2.safetensors"):
        assert (kept.folder / file).read_bytes() == (folder / file).read_bytes()


async def test_what_is_here_is_found_without_anybody_and_not_fetched_again(folder: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        shelf = await swarm.donor(ALICE, local)
        await swarm.fetch(local.model_id, FRONT)
        given = shelf.given_bytes
        swarm.there.clear()
        await swarm.fetch(local.model_id, Span(1, 3))
        with pytest.raises(Unavailable, match=r"no member that is there now has model-2.safetensors of sparrow"):
            await swarm.fetch(local.model_id, BACK)
        swarm.there.append(ALICE)
        kept = await swarm.fetch(local.model_id, BACK)
        assert shelf.given_bytes > given
    assert_holds(kept, folder, FRONT)
    assert_holds(kept, folder, BACK)


async def test_a_cut_fetch_goes_on_from_what_lies_on_the_disk(folder: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        shelf = await swarm.donor(ALICE, local)
        with anyio.move_on_after(2.5):
            await swarm.fetch(local.model_id, Span(0, 8))
        cut = shelf.given_bytes
        assert cut > 10e6
        kept = await swarm.fetch(local.model_id, Span(0, 8))
        total = sum(entry.size_bytes for entry in local.manifest.weights)
        assert shelf.given_bytes < total + 3 * CHUNK_BYTES, "two open blocks and a header may come twice"
    assert_holds(kept, folder, Span(0, 8))


def corrupt(folder: Path, tmp_path: Path, name: str) -> Path:
    copy = tmp_path / name
    shutil.copytree(folder, copy)
    data = bytearray((copy / "model-1.safetensors").read_bytes())
    data[CHUNK_BYTES + 77] ^= 1
    (copy / "model-1.safetensors").write_bytes(data)
    return copy


async def test_a_donor_with_damaged_files_is_dropped_at_its_first_bad_chunk(folder: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        await swarm.donor(ALICE, local)
        await swarm.donor(BOB, replace(local, folder=corrupt(folder, tmp_path, "damaged")))
        kept = await swarm.fetch(local.model_id, FRONT)
    assert_holds(kept, folder, FRONT)
    for event in swarm.heard(DonorDropped):
        assert isinstance(event, DonorDropped)
        assert (event.peer, event.fault) == (BOB, True)
        assert "bad block 1 of model-1.safetensors" in event.reason


@pytest.mark.parametrize("liars", [[BOB], [BOB, CAROL]], ids=["one", "most"])
async def test_where_members_differ_about_hashes_the_models_id_judges(
    folder: Path, tmp_path: Path, liars: list[PeerId]
) -> None:
    """The liars' hashes fit their own damaged files, so no chunk of theirs is ever bad."""
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        await swarm.donor(ALICE, local)
        damaged = corrupt(folder, tmp_path, "other")
        false = from_folder(damaged, tmp_path / "lie", "sparrow").manifest.chunks
        lie = replace(local, folder=damaged, manifest=msgspec.structs.replace(local.manifest, chunks=false))
        for liar in liars:
            await swarm.donor(liar, lie)
        kept = await swarm.fetch(local.model_id, FRONT)
    assert_holds(kept, folder, FRONT)
    dropped = {event.peer: event for event in swarm.told if isinstance(event, DonorDropped)}
    assert set(dropped) == set(liars)
    assert all("false hashes" in event.reason for event in dropped.values())
    assert (kept.folder / "model-1.safetensors").read_bytes() == (folder / "model-1.safetensors").read_bytes()


@pytest.mark.parametrize("honest", [[ALICE], [ALICE, CAROL]], ids=["one", "two"])
async def test_false_hashes_that_were_believed_are_found_when_honest_members_come(
    folder: Path, tmp_path: Path, honest: list[PeerId]
) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        damaged = corrupt(folder, tmp_path, "other")
        false = from_folder(damaged, tmp_path / "lie", "sparrow").manifest.chunks
        lie = replace(local, folder=damaged, manifest=msgspec.structs.replace(local.manifest, chunks=false))
        await swarm.donor(BOB, lie)
        await swarm.fetch(local.model_id, Span(0, 2))
        for peer in honest:
            await swarm.donor(peer, local)
        kept = await swarm.fetch(local.model_id, FRONT)
    assert_holds(kept, folder, FRONT)


async def test_only_liars_give_an_error_and_no_file(folder: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        damaged = corrupt(folder, tmp_path, "other")
        false = from_folder(damaged, tmp_path / "lie", "sparrow").manifest.chunks
        lie = replace(local, folder=damaged, manifest=msgspec.structs.replace(local.manifest, chunks=false))
        await swarm.donor(BOB, lie)
        with pytest.raises(RemoteFault, match="did not arrive as the id of sparrow describes it"):
            await swarm.fetch(local.model_id, Span(0, 8))
    assert not (PeerFolder.of(swarm.cache, local.model_id).folder / "model-1.safetensors").exists()


@pytest.mark.parametrize("comes_back", [True, False])
async def test_when_all_donors_are_gone_the_node_says_so_and_waits(
    folder: Path, tmp_path: Path, comes_back: bool
) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        await swarm.donor(BOB, local)
        await swarm.donor(ALICE, local)
        swarm.there.remove(BOB)

        async def events() -> None:
            await anyio.sleep(2.0)
            network.kill(ALICE)
            swarm.there.clear()
            await anyio.sleep(40.0)
            if comes_back:
                swarm.there.append(BOB)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(events)
            if comes_back:
                assert_holds(await swarm.fetch(local.model_id, Span(0, 8)), folder, Span(0, 8))
            else:
                with pytest.raises(Unavailable, match=r"no donor .* is left .* bytes are here"):
                    await swarm.fetch(local.model_id, Span(0, 8))
    assert len(swarm.heard(WeightsMissing)) == 1


async def test_a_truncated_file_at_a_donor_is_not_taken(folder: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        cut = tmp_path / "cut"
        shutil.copytree(folder, cut)
        await swarm.donor(BOB, replace(local, folder=cut))
        (cut / "model-1.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes()[: CHUNK_BYTES + 100])
        await swarm.donor(ALICE, local)
        kept = await swarm.fetch(local.model_id, FRONT)
    assert_holds(kept, folder, FRONT)


async def test_a_disk_that_takes_no_more_ends_it_in_one_line_and_keeps_what_came(folder: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        await swarm.donor(ALICE, local)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            with pytest.raises(OutOfMemory, match="cannot write to"):
                await swarm.fetch(local.model_id, FRONT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        kept = await swarm.fetch(local.model_id, FRONT)
    assert_holds(kept, folder, FRONT)


async def test_an_adapter_travels_as_a_model_does(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    tensors = {f"base_model.model.layers.{n}.q_proj.lora_A.weight": np.ones((8, 64), np.float32) * n for n in range(3)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), from_folder(adapter, tmp_path, "tone")
        await swarm.donor(ALICE, local)
        kept = await swarm.fetch(local.model_id, whole(0))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (kept.folder / name).read_bytes() == (adapter / name).read_bytes()


async def test_a_node_that_gives_nothing_is_asked_for_nothing(folder: Path, tmp_path: Path) -> None:
    async with MemoryNetwork(conditions=LINKS) as network:
        swarm, local = Swarm(network, tmp_path), local_of(folder, tmp_path)
        await swarm.donor(BOB, local, WeightShelf(None))
        with pytest.raises(Unavailable, match="no member that is there now has"):
            await swarm.fetch(local.model_id, FRONT)


Change = Callable[[manifests.Manifest], manifests.Manifest]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: msgspec.structs.replace(m, texts=(FileEntry("../escape", 1, ""),)), "'../escape'"),
        (lambda m: msgspec.structs.replace(m, weights=(FileEntry("config.json", 1, ""),)), "'config.json'"),
        (lambda m: msgspec.structs.replace(m, weights=()), "lies in no weight file"),
        (lambda m: msgspec.structs.replace(m, weights=(*m.weights, m.weights[0])), "sensible sizes"),
    ],
)
async def test_a_manifest_cannot_name_other_files_of_ours(
    folder: Path, tmp_path: Path, change: Change, named: str
) -> None:
    made = change(local_of(folder, tmp_path).manifest)
    assert named in manifest_problem(made)
    async with MemoryNetwork(conditions=LINKS) as network:
        calls = member(network.join(ALICE))
        await serve_blobs(calls, lambda _: {"manifest": manifests.encode(made)})
        with pytest.raises(ShoalError):
            await peer_model(member(network.join(JOINER)), lambda: [ALICE], manifests.model_id(made), tmp_path / "in")
    assert not (tmp_path / "in").exists()
