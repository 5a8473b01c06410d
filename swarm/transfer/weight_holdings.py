"""What a member holds of a model's weights: which files, which of their chunks, and by which hashes it knows them.

A model's id covers each file's sha256 and not the chunks'. So members say by which table of chunk hashes they go; where
two differ, one of them is wrong, and only the whole file shows which.
"""

import hashlib
from collections.abc import Callable, Sequence

import anyio
import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import Refused, ShoalError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import Manifest
from shoal.swarm.members.member_calls import MemberCalls

from .block_transfer import Block
from .block_transfer_listing import Listing

METHOD = "/shoal/weights/held/1"
MAX_HELD_BYTES = 512 << 10
MAX_FILES = 4096
ASK_S = 5.0
SETTLE_S = 1.0  # once somebody has answered, the others have so long
MAX_ASKED = 64


class HeldFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str
    table: bytes  # `table_digest` of the chunk hashes
    chunks: bytes  # bit n % 8 of byte n // 8 is chunk n; empty for a whole file


class Holdings(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    files: tuple[HeldFile, ...]

    def table(self, file: str) -> bytes | None:
        return next((held.table for held in self.files if held.name == file), None)


class _Question(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    model: ModelId


_questions = Canonical(_Question, "a question for weights", 4096)
_holdings = Canonical(Holdings, "a member's weights", MAX_HELD_BYTES)


def table_digest(table: Sequence[str]) -> bytes:
    return hashlib.sha256("".join(table).encode()).digest()


def bits_of(chunks: frozenset[int] | None, count: int) -> bytes:
    """chunks: None for all of `count`"""
    if chunks is None or len(chunks) == count:
        return b""
    bits = bytearray(-(-count // 8))
    for chunk in chunks:
        bits[chunk // 8] |= 1 << chunk % 8
    return bytes(bits)


def chunks_of(bits: bytes, count: int) -> frozenset[int] | None:
    """None for all."""
    if not bits:
        return None
    return frozenset(n for n in range(min(count, 8 * len(bits))) if bits[n // 8] >> n % 8 & 1)


async def serve_holdings(calls: MemberCalls, of: Callable[[ModelId], Holdings | None]) -> None:
    async def handle(_: PeerId, body: bytes) -> bytes:
        held = of(_questions.decode(body).model)
        if held is None:
            raise Refused("no weights of this model are given away here")
        return _holdings.encode(held)

    await calls.answer(METHOD, handle)


async def ask_holdings(calls: MemberCalls, peers: Sequence[PeerId], model: ModelId) -> dict[PeerId, Holdings]:
    """Of those that have something; who does not answer in time, or strangely, has nothing."""
    found: dict[PeerId, Holdings] = {}
    question = _questions.encode(_Question(model))
    asked = list(dict.fromkeys(peers))[:MAX_ASKED]
    open_ = len(asked)
    news = anyio.Event()

    async def ask(peer: PeerId) -> None:
        nonlocal open_
        try:
            held = _holdings.decode(await calls.call(peer, METHOD, question, ASK_S))
            if 0 < len(held.files) <= MAX_FILES:
                found[peer] = held
        except ShoalError:
            pass
        open_ -= 1
        if found or not open_:
            news.set()

    async with anyio.create_task_group() as tasks:
        for peer in asked:
            tasks.start_soon(ask, peer)
        if asked:
            await news.wait()
            with anyio.move_on_after(SETTLE_S):
                while open_:  # noqa: ASYNC110  a handful of times
                    await anyio.sleep(SETTLE_S / 50)
        tasks.cancel_scope.cancel()
    return found


def held_blocks(held: Holdings, listing: Listing, manifest: Manifest) -> frozenset[Block] | None:
    """The blocks of a listing that a member has and knows by the hashes of `manifest`. returns: None for all"""
    blocks: set[Block] = set()
    files = {file.name: file for file in held.files}
    whole = True
    for index, file in enumerate(listing.files):
        count, theirs = len(file.blocks), files.get(file.name)
        if theirs is None or theirs.table != table_digest(manifest.chunks[file.name]):
            whole = False
            continue
        chunks = chunks_of(theirs.chunks, count)
        whole = whole and chunks is None
        blocks.update(Block(index, n) for n in (range(count) if chunks is None else chunks))
    return None if whole else frozenset(blocks)
