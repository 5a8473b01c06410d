"""Small files of a model, fetched from the peers that serve it: the manifest, the tokenizer, the configuration.

Chunked, so that every answer stays far under the limit of a unary call; verified against the model id before use.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from shoal.swarm import manifest as manifests
from shoal.swarm.errors import MalformedMessage, Refused, RemoteFault, ShoalError, Unavailable
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import MAX_TEXT_FILE_BYTES, Manifest
from shoal.swarm.members.member_calls import MemberCalls

METHOD = "/shoal/blob/1"
MANIFEST = "manifest"
CHUNK_BYTES = 192 << 10
MAX_BLOB_BYTES = MAX_TEXT_FILE_BYTES


class BlobRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    model: ModelId
    name: str  # MANIFEST or one of manifest.TEXT_FILES
    offset: int


class BlobChunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    total_bytes: int
    data: bytes


_requests = msgspec.msgpack.Decoder(BlobRequest)
_chunks = msgspec.msgpack.Decoder(BlobChunk)
Blobs = Mapping[str, bytes]


async def serve_blobs(calls: MemberCalls, blobs_of: Callable[[ModelId], Blobs | None]) -> None:
    async def handle(_: PeerId, body: bytes) -> bytes:
        try:
            request = _requests.decode(body)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise MalformedMessage(f"not a blob request: {error}") from error
        blobs = blobs_of(request.model)
        if blobs is None or request.name not in blobs:
            raise Refused("not served here")
        data = blobs[request.name]
        if not 0 <= request.offset <= len(data):
            raise MalformedMessage(f"offset {request.offset} of {len(data)} bytes")
        chunk = BlobChunk(len(data), data[request.offset : request.offset + CHUNK_BYTES])
        return msgspec.msgpack.encode(chunk)

    await calls.answer(METHOD, handle)


async def _fetch(calls: MemberCalls, peer: PeerId, model: ModelId, name: str) -> bytes:
    data = bytearray()
    while True:
        answer = await calls.call(peer, METHOD, msgspec.msgpack.encode(BlobRequest(model, name, len(data))), 10.0)
        try:
            chunk = _chunks.decode(answer)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise MalformedMessage(f"not a chunk of a blob: {error}") from error
        if chunk.total_bytes > MAX_BLOB_BYTES or len(data) + len(chunk.data) > chunk.total_bytes:
            raise RemoteFault(f"{peer} sent more of {name} than it may")
        data += chunk.data
        if len(data) == chunk.total_bytes:
            return bytes(data)
        if not chunk.data:
            raise RemoteFault(f"{peer} stopped in the middle of {name}")


async def fetch_manifest(calls: MemberCalls, holders: Sequence[PeerId], model: ModelId) -> Manifest:
    """From the first holder that has the right one. raises: Unavailable"""
    reasons = []
    for peer in holders:
        try:
            manifest = manifests.decode(await _fetch(calls, peer, model, MANIFEST))
            if manifests.model_id(manifest) == model:
                return manifest
            reasons.append(f"{peer} sent another model's manifest")
        except ShoalError as error:
            reasons.append(str(error))
    raise Unavailable(f"no holder gave the manifest of {model[:12]}: {'; '.join(reasons[:3]) or 'no holder known'}")


async def fetch_texts(
    calls: MemberCalls, holders: Sequence[PeerId], model: ModelId, manifest: Manifest
) -> dict[str, bytes]:
    """The manifest's small files, each verified by its sha256. raises: Unavailable naming the file"""
    texts = {}
    for entry in manifest.texts:
        reasons = []
        for peer in holders:
            try:
                data = await _fetch(calls, peer, model, entry.name)
            except ShoalError as error:
                reasons.append(str(error))
                continue
            if hashlib.sha256(data).hexdigest() == entry.sha256:
                texts[entry.name] = data
                break
            reasons.append(f"{peer} sent a damaged {entry.name}")
        else:
            raise Unavailable(f"no holder gave {entry.name}: {'; '.join(reasons[:3])}")
    return texts
