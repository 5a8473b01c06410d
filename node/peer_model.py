"""A model from the swarm itself: its manifest by its id, then the parts of its weight files that a span needs.

The headers of the files come first, as they say where the tensors lie; then every chunk that holds a byte of a wanted
tensor, from all members that have it, each chunk checked against the manifest's hash on arrival. A model's id covers
whole files and not chunks. So where members go by different hashes, the file is brought whole and the id judges; where
they agree, ranges are enough. What is here stays (`peer_folder`), and a start without a network finds it.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import anyio.from_thread
import anyio.to_thread
import msgspec

from shoal.swarm import blobs
from shoal.swarm.block_transfer import Block, Dropped
from shoal.swarm.block_transfer_fetch import BlockFetcher, Holders, Search, Waiting
from shoal.swarm.block_transfer_folder import BlockFolder
from shoal.swarm.block_transfer_listing import BundleId, Listing, weights_listing
from shoal.swarm.errors import RemoteFault, ShoalError, Unavailable, UsageError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import CHUNK_BYTES, TEXT_FILES, Manifest
from shoal.swarm.member_calls import MemberCalls
from shoal.swarm.units import Span
from shoal.swarm.weight_holdings import Holdings, ask_holdings, held_blocks, table_digest

from .model_source import LocalModel, Progress
from .model_units import tensors_of
from .node_events import DonorDropped, NodeEvent, WeightsFetched, WeightsMissing
from .peer_folder import PeerFolder
from .safetensors_header import TensorPlace, header_length, parse_header
from .weight_shelf import WEIGHTS_METHOD

WAIT_S = 60.0  # for a member that has what is missing, when all that had it are gone
DISPUTE_WAIT_S = 5.0  # the same for a file whose hashes are disputed
Peers = Callable[[], Sequence[PeerId]]  # members that are there now
Tell = Callable[[NodeEvent], None]


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


class PeerWeights:
    """Brings the weights of a span into the model's folder."""

    def __init__(
        self,
        calls: MemberCalls,
        peers: Peers,
        folder: PeerFolder,
        model: ModelId,
        manifest: Manifest,
        tell: Tell,
        progress: Progress | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self._calls, self._peers, self._folder, self._model = calls, peers, folder, model
        self._manifest = manifest  # its chunks: the hashes that were agreed on so far
        self._tell, self._progress, self._wait_s = tell, progress, wait_s
        self._fetcher = BlockFetcher(calls, method=WEIGHTS_METHOD)
        self._liars: set[PeerId] = set()
        self._given: Counter[PeerId] = Counter()
        self._kept_bytes = 0
        self._seconds = 0.0

    async def fetch(self, span: Span) -> None:
        """raises: Unavailable (nobody has it; what has come is kept), RemoteFault (what they have is not this model),
        OutOfMemory
        """
        wanted = tensors_of(self._manifest, span)
        files = sorted({entry.file for entry in wanted})
        names = {file: {entry.name for entry in wanted if entry.file == file} for file in files}
        self._manifest = msgspec.structs.replace(self._manifest, chunks=dict(self._folder.tables()))
        if await anyio.to_thread.run_sync(self._is_here, names):
            return
        await self._agree([file for file in files if not self._is_whole(file)])
        places = await self._headers(files)
        await self._bring({file: _chunks_of(names[file], *places[file]) for file in files})
        if self._given:
            self._tell(
                WeightsFetched(
                    self._manifest.name, sum(self._given.values()), self._kept_bytes, dict(self._given), self._seconds
                )
            )

    def _is_here(self, names: Mapping[str, set[str]]) -> bool:
        """Whether tensors, by file, were all verified before."""
        for file, tensors in names.items():
            here = self._folder.chunks(file)
            if 0 not in here or file not in self._manifest.chunks:
                return False
            length = self._header_length(file)
            if not _chunk_range(0, length) <= here or not _chunks_of(tensors, *self._read_header(file, length)) <= here:
                return False
        return True

    def _is_whole(self, file: str) -> bool:
        return file in self._manifest.chunks and len(self._folder.chunks(file)) == len(self._manifest.chunks[file])

    async def _agree(self, files: Sequence[str]) -> None:
        """Learn the chunk hashes of files. raises: Unavailable, RemoteFault, OutOfMemory"""
        holdings = await self._holdings()
        for file in files:
            votes: dict[bytes, list[PeerId]] = {}
            kept = self._manifest.chunks.get(file)
            if kept is not None:
                votes[table_digest(kept)] = []
            for peer, held in holdings.items():
                digest = held.table(file)
                if digest is not None:
                    votes.setdefault(digest, []).append(peer)
            if not votes:
                name = self._manifest.name
                raise Unavailable(f"no member that is there now has {file} of {name}; try again when one is")
            await self._settle_table(file, votes)
        self._folder.keep(self._manifest)

    async def _settle_table(self, file: str, votes: Mapping[bytes, Sequence[PeerId]]) -> None:
        """Where members differ, the model's id judges. raises: Unavailable, RemoteFault, OutOfMemory"""
        reasons: list[str] = []
        kept = self._manifest.chunks.get(file)
        for digest, peers in sorted(votes.items(), key=lambda vote: -len(vote[1])):
            try:
                if kept is not None and table_digest(kept) == digest:
                    self._manifest.chunks[file] = kept
                else:
                    await self._take_table(file, digest, peers)
                if len(votes) > 1:
                    await self._bring({file: None}, DISPUTE_WAIT_S)
                break
            except (RemoteFault, Unavailable) as error:
                reasons.append(str(error))
                self._manifest.chunks.pop(file, None)
        else:
            raise RemoteFault(f"the members' hashes of {file} of {self._manifest.name} cannot be used: {reasons[0]}")
        for digest, peers in votes.items():
            if digest != table_digest(self._manifest.chunks[file]):
                self._drop(peers, f"goes by false hashes of {file}")

    async def _take_table(self, file: str, digest: bytes, peers: Sequence[PeerId]) -> None:
        """raises: Unavailable, RemoteFault"""
        problem: ShoalError = Unavailable(f"nobody gave the hashes of {file}")
        for peer in peers:
            try:
                manifest = await blobs.fetch_manifest(self._calls, [peer], self._model)
            except ShoalError as error:
                problem = error
                continue
            table = manifest.chunks.get(file, ())
            if table_digest(table) == digest:
                self._manifest.chunks[file] = table
                if weights_listing(self._manifest, [file]) is None:
                    self._manifest.chunks.pop(file)
                    raise RemoteFault(f"the hashes of {file} do not fit its size")
                return
            self._drop([peer], f"gave other hashes of {file} than it said")
        raise problem

    async def _headers(self, files: Iterable[str]) -> dict[str, tuple[list[TensorPlace], int]]:
        """Where the tensors lie. returns: by file, places and the bytes before the first of them"""
        await self._bring({file: frozenset((0,)) for file in files})
        lengths = {file: await anyio.to_thread.run_sync(self._header_length, file) for file in files}
        longer = {file: _chunk_range(0, length) for file, length in lengths.items() if length > CHUNK_BYTES}
        if longer:
            await self._bring(longer)
        return {file: await anyio.to_thread.run_sync(self._read_header, file, lengths[file]) for file in files}

    def _header_length(self, file: str) -> int:
        """With the 8 bytes before it. raises: RemoteFault"""
        try:
            with (self._folder.folder / file).open("rb") as stream:
                return 8 + header_length(stream.read(8), file)
        except (UsageError, OSError) as error:
            raise RemoteFault(f"what came is not the model: {error}") from error

    def _read_header(self, file: str, length: int) -> tuple[list[TensorPlace], int]:
        sizes = {entry.name: entry.size_bytes for entry in self._manifest.weights}
        try:
            with (self._folder.folder / file).open("rb") as stream:
                return parse_header(stream.read(length)[8:], file, sizes[file]), length
        except (UsageError, OSError) as error:
            raise RemoteFault(f"what came is not the model: {error}") from error

    async def _bring(self, chunks: Mapping[str, frozenset[int] | None], wait_s: float | None = None) -> None:
        """Chunks of files; None for all of one. raises: Unavailable, RemoteFault, OutOfMemory"""
        listing = weights_listing(self._manifest, chunks)
        if listing is None:
            raise RemoteFault(f"the hashes of {', '.join(chunks)} do not fit the files' sizes")
        wanted, known = set(), set()
        for index, file in enumerate(listing.files):
            numbers = chunks[file.name]
            wanted |= {Block(index, n) for n in (range(len(file.blocks)) if numbers is None else numbers)}
            known |= {Block(index, n) for n in self._folder.chunks(file.name)}
        if wanted <= known:
            return
        into = BlockFolder(self._folder.folder, listing, wanted, known)
        search = Search(lambda: self._holders(listing), self._wait_s if wait_s is None else wait_s)
        report = await self._fetcher.bring(
            BundleId(self._model), listing, await self._holders(listing), into, self._advanced, search, self._told,
            random.Random(),
        )  # fmt: skip
        self._given.update(report.given_bytes)
        self._kept_bytes = max(self._kept_bytes, report.kept_bytes)
        self._seconds += report.seconds
        await anyio.to_thread.run_sync(self._settle, listing, wanted | known)

    def _settle(self, listing: Listing, here: set[Block]) -> None:
        """Note what is here; a whole file has to be the one that the id promises. raises: RemoteFault, OutOfMemory"""
        hashes = {entry.name: entry.sha256 for entry in self._manifest.weights}
        for index, file in enumerate(listing.files):
            numbers = frozenset(block.number for block in here if block.file == index)
            if len(numbers) == len(file.blocks):
                with (self._folder.folder / file.name).open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                if digest != hashes[file.name]:
                    self._folder.forget(file.name)
                    raise RemoteFault(f"{file.name} did not arrive as the id of {self._manifest.name} describes it")
            self._folder.note(file.name, numbers, len(file.blocks))

    async def _holdings(self) -> dict[PeerId, Holdings]:
        there = [peer for peer in self._peers() if peer not in self._liars]
        return await ask_holdings(self._calls, there, self._model)

    async def _holders(self, listing: Listing) -> Holders:
        holders: dict[PeerId, frozenset[Block] | None] = {}
        for peer, held in (await self._holdings()).items():
            blocks = held_blocks(held, listing, self._manifest)
            if blocks is None or blocks:
                holders[peer] = blocks
        return holders

    def _advanced(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(f"{self._manifest.name} from peers", done, total)

    def _told(self, what: Dropped | Waiting) -> None:
        if isinstance(what, Waiting):
            self._tell(WeightsMissing(self._manifest.name, what.reason))
            return
        if what.fault:
            self._liars.add(what.donor)
        self._tell(DonorDropped(what.donor, what.reason, what.fault))

    def _drop(self, peers: Iterable[PeerId], reason: str) -> None:
        for peer in peers:
            self._liars.add(peer)
            self._tell(DonorDropped(peer, reason, True))


def _chunk_range(start: int, stop: int) -> frozenset[int]:
    """The chunks that hold bytes [start, stop)."""
    return frozenset(range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)))


def _chunks_of(names: set[str], places: Sequence[TensorPlace], before: int) -> frozenset[int]:
    """The chunks that hold a file's header and the tensors that are named. before: bytes of the header"""
    chunks = _chunk_range(0, before)
    for place in places:
        if place.name in names:
            chunks |= _chunk_range(before + place.start, before + place.stop)
    return chunks
