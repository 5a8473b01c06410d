"""The weights of a span, from members, into the model's folder.

The headers of the files come first, as they say where the tensors lie, and with them chunks that are wanted in any
case; then every other chunk that holds a byte of a wanted tensor. They come from all members that have them, each
checked against the manifest's hash on arrival. A model's id covers whole files and not chunks. So where members go by
different hashes, the file is brought whole and the id judges; where they agree, ranges are enough.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod

import msgspec

from shoal.swarm.errors import RemoteFault, ShoalError, Unavailable, UsageError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import ADAPTER, CHUNK_BYTES, Manifest
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.transfer import blobs
from shoal.swarm.transfer.block_transfer import Block, Dropped
from shoal.swarm.transfer.block_transfer_fetch import BlockFetcher, Holders, Search, Threads, Waiting
from shoal.swarm.transfer.block_transfer_folder import BlockFolder
from shoal.swarm.transfer.block_transfer_listing import BundleId, Listing, weights_listing
from shoal.swarm.transfer.weight_holdings import Holdings, ask_holdings, held_blocks, table_digest
from shoal.swarm.units import Span

from .model_source import Progress
from .model_units import tensors_of
from .node_events import DonorDropped, NodeEvent, WeightsFetched, WeightsMissing
from .peer_folder import PeerFolder
from .safetensors_header import VALUE_BITS, TensorPlace, header_length, parse_header
from .weight_shelf import WEIGHTS_METHOD

WAIT_S = 60.0  # for a member that has what is missing, when all that had it are gone
DISPUTE_WAIT_S = 5.0  # the same for a file whose hashes are disputed
Peers = Callable[[], Sequence[PeerId]]  # members that are there now
Tell = Callable[[NodeEvent], None]


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
        threads: Threads | None = None,
    ) -> None:
        self._calls, self._peers, self._folder, self._model = calls, peers, folder, model
        self._manifest = manifest  # its chunks: the hashes that were agreed on so far
        self._tell, self._progress, self._wait_s = tell, progress, wait_s
        self._threads = threads or Threads()
        self._fetcher = BlockFetcher(calls, threads=self._threads, method=WEIGHTS_METHOD)
        self._held: dict[PeerId, Holdings] = {}
        self._liars: set[PeerId] = set()
        self._given: Counter[PeerId] = Counter()
        self._kept_bytes = 0
        self._seconds = 0.0
        self._shown = -1

    async def fetch(self, span: Span) -> None:
        """raises: Unavailable (nobody has it; what has come is kept), RemoteFault (what they have is not this model),
        OutOfMemory
        """
        wanted = self._manifest.tensors if self._manifest.model_type == ADAPTER else tensors_of(self._manifest, span)
        files = sorted({entry.file for entry in wanted})
        names = {file: {entry.name for entry in wanted if entry.file == file} for file in files}
        self._manifest = msgspec.structs.replace(self._manifest, chunks=dict(self._folder.tables()))
        if await self._threads.run(partial(self._is_here, names)):
            return
        await self._agree([file for file in files if not self._is_whole(file)])
        await self._bring({file: self._likely(file, names[file]) for file in files})
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
            here = self._here(file)
            if 0 not in here:
                return False
            length = self._header_length(file)
            if not _chunk_range(0, length) <= here or not _chunks_of(tensors, *self._read_header(file, length)) <= here:
                return False
        return True

    def _is_whole(self, file: str) -> bool:
        return file in self._manifest.chunks and len(self._here(file)) == len(self._manifest.chunks[file])

    def _here(self, file: str) -> frozenset[int]:
        return self._folder.chunks(file, self._manifest.chunks.get(file, ()))

    async def _agree(self, files: Sequence[str]) -> None:
        """Learn the chunk hashes of files. raises: Unavailable, RemoteFault, OutOfMemory"""
        holdings = await self._look()
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

    def _likely(self, file: str, names: set[str]) -> frozenset[int]:
        """The header's first chunk, and those that lie within wanted tensors if the file is in the usual order.

        So that all donors have work from the start. safetensors writes the widest dtype first, then by name.
        """
        entries = [entry for entry in self._manifest.tensors if entry.file == file]
        if len(names) == len(entries):
            return frozenset(range(len(self._manifest.chunks[file])))
        size = next(entry.size_bytes for entry in self._manifest.weights if entry.name == file)
        sizes = {entry.name: prod(entry.shape) * VALUE_BITS.get(entry.dtype, 0) // 8 for entry in entries}
        at = max(0, size - sum(sizes.values()))
        chunks = {0}
        for entry in sorted(entries, key=lambda entry: (-VALUE_BITS.get(entry.dtype, 0), entry.name)):
            if entry.name in names:
                chunks.update(range(-(-at // CHUNK_BYTES), (at + sizes[entry.name]) // CHUNK_BYTES))
            at += sizes[entry.name]
        return frozenset(n for n in chunks if n < len(self._manifest.chunks[file]))

    async def _headers(self, files: Iterable[str]) -> dict[str, tuple[list[TensorPlace], int]]:
        """Where the tensors lie. returns: by file, places and the bytes before the first of them"""
        lengths = {file: await self._threads.run(partial(self._header_length, file)) for file in files}
        longer = {file: _chunk_range(0, length) for file, length in lengths.items() if length > CHUNK_BYTES}
        if longer:
            await self._bring(longer)
        return {file: await self._threads.run(partial(self._read_header, file, lengths[file])) for file in files}

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
            known |= {Block(index, n) for n in self._here(file.name)}
        if wanted <= known:
            return
        into = BlockFolder(self._folder.folder, listing, wanted, known)
        search = Search(partial(self._found, listing), self._wait_s if wait_s is None else wait_s)
        report = await self._fetcher.bring(
            BundleId(self._model), listing, self._holders(listing), into, self._advanced, search, self._told,
            random.Random(),
        )  # fmt: skip
        self._given.update(report.given_bytes)
        self._kept_bytes = max(self._kept_bytes, report.kept_bytes)
        self._seconds += report.seconds
        await self._threads.run(partial(self._settle, listing, wanted | known))

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
            self._folder.note(file.name, numbers, self._manifest.chunks[file.name])

    async def _look(self) -> dict[PeerId, Holdings]:
        """What the members have now."""
        there = [peer for peer in self._peers() if peer not in self._liars]
        self._held = await ask_holdings(self._calls, there, self._model)
        return self._held

    async def _found(self, listing: Listing) -> Holders:
        await self._look()
        return self._holders(listing)

    def _holders(self, listing: Listing) -> Holders:
        """By what was seen at the last look."""
        holders: dict[PeerId, frozenset[Block] | None] = {}
        for peer, held in self._held.items():
            if peer in self._liars:
                continue
            blocks = held_blocks(held, listing, self._manifest)
            if blocks is None or blocks:
                holders[peer] = blocks
        return holders

    def _advanced(self, done: int, total: int) -> None:
        if self._progress is not None and (done == total or abs(done - self._shown) >= total // 200):
            self._shown = done
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
