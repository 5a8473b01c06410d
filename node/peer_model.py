"""A model from the swarm itself: its manifest by its id, and its small files; `peer_weights` brings the weights.

What is here stays (`peer_folder`), and a start without a network finds it.
"""

from pathlib import Path

import anyio.from_thread
import msgspec

from shoal.swarm.errors import RemoteFault, Unavailable
from shoal.swarm.identifiers import ModelId
from shoal.swarm.manifest import TEXT_FILES, Manifest
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.transfer import blobs
from shoal.swarm.transfer.weight_holdings import ask_holdings
from shoal.swarm.units import Span

from .model_source import LocalModel, Progress
from .peer_folder import PeerFolder
from .peer_weights import Peers, PeerWeights, Tell


def kept_model(
    folder: PeerFolder, calls: MemberCalls | None = None, peers: Peers = tuple, tell: Tell | None = None
) -> LocalModel | None:
    """A model of which something is kept here; without `calls` nothing more can be fetched."""
    manifest = folder.manifest()
    if manifest is None or not folder.has_texts(manifest):
        return None
    return _local(folder, manifest, calls, peers, tell)


async def peer_model(
    calls: MemberCalls, peers: Peers, model: ModelId, cache: Path, tell: Tell | None = None
) -> LocalModel:
    """The manifest and small files of a model that members have; `LocalModel.fetch`, on a worker thread, brings
    weights.

    raises: Unavailable (nobody gives them), RemoteFault (what the id names is no model), OutOfMemory
    """
    folder = PeerFolder.of(cache, model)
    kept = kept_model(folder, calls, peers, tell)
    if kept is not None:
        return kept
    there = peers()
    holders = [*await ask_holdings(calls, there, model)] or there
    manifest = await blobs.fetch_manifest(calls, holders, model)
    problem = manifest_problem(manifest)
    if problem:
        raise RemoteFault(f"{model[:12]} cannot be used: {problem}")
    texts = await blobs.fetch_texts(calls, holders, model, manifest)
    manifest = msgspec.structs.replace(manifest, chunks={})
    folder.keep(manifest, texts)
    return _local(folder, manifest, calls, peers, tell)


def manifest_problem(manifest: Manifest) -> str:
    """Why a stranger's manifest cannot be used, or an empty string: its names become files of ours."""
    sizes = {entry.name: entry.size_bytes for entry in manifest.weights}
    if len(sizes) != len(manifest.weights) or any(size <= 0 for size in sizes.values()):
        return "its weight files have no sensible sizes"
    for name in sizes:
        if not name.endswith(".safetensors"):
            return f"a weight file is called {name[:40]!r}"
    for text in manifest.texts:
        if text.name not in TEXT_FILES:
            return f"a small file is called {text.name[:40]!r}"
    for entry in manifest.tensors:
        if entry.file not in sizes:
            return f"{entry.name[:40]!r} lies in no weight file"
    return ""


def _local(
    folder: PeerFolder, manifest: Manifest, calls: MemberCalls | None, peers: Peers, tell: Tell | None
) -> LocalModel:
    model = ModelId(folder.folder.name)

    def fetch(span: Span, progress: Progress | None) -> None:
        if calls is None:
            raise Unavailable(f"{manifest.name} is not whole here, and no node runs that could fetch the rest")
        weights = PeerWeights(calls, peers, folder, model, manifest, tell or (lambda _: None), progress)
        anyio.from_thread.run(weights.fetch, span)

    return LocalModel(folder.folder, manifest, model, fetch, origin="peers")
