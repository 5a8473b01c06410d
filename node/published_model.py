"""A model that peers give away, brought here: the manifest by its id, then the weight files that are needed.

Every block is checked on arrival and every file as a whole before it is used: a model's id covers the files' hashes and
not the blocks', so a publisher that lies about blocks is found out by the file, and another's manifest is tried.
"""

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.from_thread
import msgspec

from shoal.swarm import blobs
from shoal.swarm.block_transfer_fetch import BlockFetcher
from shoal.swarm.block_transfer_folder import BlockFolder
from shoal.swarm.block_transfer_listing import BundleId, weights_listing
from shoal.swarm.errors import OutOfMemory, RemoteFault, ShoalError, Unavailable, UsageError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import Manifest
from shoal.swarm.member_calls import MemberCalls

from .model_source import LocalModel, Progress
from .publications import LIST_METHOD, MAX_LISTED_BYTES, MAX_PUBLISHED, WEIGHTS_METHOD, Published

MAX_PEERS = 64  # asked what they publish
AT_ONCE = 16
_ID = re.compile(r"^[0-9a-f]{12,64}$")
_published = msgspec.msgpack.Decoder(list[Published])


def looks_published(model: str) -> bool:
    """Whether a user means a model of the swarm: its id, or at least the first 12 characters of it."""
    return bool(_ID.match(model)) and not Path(model).exists()


async def find_published(calls: MemberCalls, peers: Sequence[PeerId]) -> dict[Published, list[PeerId]]:
    """What the peers give away, and who gives it."""
    found: dict[Published, list[PeerId]] = {}
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def ask(peer: PeerId) -> None:
        async with limiter:
            try:
                data = await calls.call(peer, LIST_METHOD, b"", 5.0)
                listed = _published.decode(data) if len(data) <= MAX_LISTED_BYTES else []
            except (ShoalError, msgspec.MsgspecError, ValueError):
                return
            for item in listed[:MAX_PUBLISHED]:
                found.setdefault(item, []).append(peer)

    async with anyio.create_task_group() as tasks:
        for peer in list(peers)[:MAX_PEERS]:
            tasks.start_soon(ask, peer)
    return found


async def published_model(calls: MemberCalls, peers: Sequence[PeerId], wanted: str, cache: Path) -> LocalModel:
    """The manifest and small files of a published model; `LocalModel.fetch`, on a worker thread, brings its weights.

    wanted: an id or the beginning of one
    raises: UsageError (nobody publishes it, or several models begin so), Unavailable, OutOfMemory
    """
    holders: dict[ModelId, list[PeerId]] = {}
    for item, givers in (await find_published(calls, peers)).items():
        if item.model.startswith(wanted):
            holders.setdefault(item.model, []).extend(givers)
    if not holders:
        raise UsageError(f"no peer of the swarm publishes a model {wanted}; `shoal models publish FOLDER` does")
    if len(holders) > 1:
        raise UsageError(f"several published models begin with {wanted}; write more of the id")
    model, givers = next(iter(holders.items()))
    manifest = await blobs.fetch_manifest(calls, givers, model)
    folder = cache / "published" / model
    texts = await blobs.fetch_texts(calls, givers, model, manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in texts.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise OutOfMemory(f"cannot write {folder}: {error.strerror or error}") from error
    bring = _Bringing(calls, model, manifest, givers, folder)

    def fetch(names: tuple[str, ...], progress: Progress | None) -> None:
        anyio.from_thread.run(bring.files, names, progress)

    return LocalModel(folder, manifest, model, fetch)


class _Bringing:
    """Weight files of one model from its holders."""

    def __init__(
        self, calls: MemberCalls, model: ModelId, manifest: Manifest, holders: Sequence[PeerId], folder: Path
    ) -> None:
        self._calls, self._model, self._manifest = calls, model, manifest
        self._holders, self._folder = list(holders), folder
        self._incoming = folder / "incoming"
        self._fetcher = BlockFetcher(calls, method=WEIGHTS_METHOD)

    async def files(self, names: tuple[str, ...], progress: Progress | None) -> None:
        """raises: Unavailable, OutOfMemory"""
        reason = "no holder gave a manifest with the hashes of its blocks"
        for holder in self._holders:
            missing = tuple(name for name in names if not (self._folder / name).is_file())
            if not missing:
                return
            try:
                await self._bring(holder, missing, progress)
            except (RemoteFault, Unavailable) as error:
                reason = str(error)
            else:
                return
        raise Unavailable(f"the weights of {self._manifest.name} could not be brought: {reason}")

    async def _bring(self, describer: PeerId, names: tuple[str, ...], progress: Progress | None) -> None:
        """describer: whose manifest says what the blocks' hashes are"""
        manifest = await blobs.fetch_manifest(self._calls, [describer], self._model)
        listing = weights_listing(manifest, names)
        if listing is None:
            raise RemoteFault(f"{describer} gave a manifest without usable hashes of blocks")

        def told(done: int, total: int) -> None:
            if progress is not None:
                progress(f"fetching {self._manifest.name} from peers", done, total)

        into = BlockFolder(self._incoming, listing)
        await self._fetcher.bring(BundleId(self._model), listing, self._holders, into, told)
        await anyio.to_thread.run_sync(self._take_over, names)

    def _take_over(self, names: tuple[str, ...]) -> None:
        """raises: RemoteFault when a file is not the one that the id promises"""
        hashes = {entry.name: entry.sha256 for entry in self._manifest.weights}
        for name in names:
            part = self._incoming / name
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != hashes[name]:
                part.unlink()
                raise RemoteFault(f"{name} did not arrive as the model's id describes it")
            part.replace(self._folder / name)
        shutil.rmtree(self._incoming, ignore_errors=True)
