"""What a model is made of: enough to check every byte of it, and to know its parts without reading them.

`model_id` is the sha256 of the canonical encoding of everything but the display name and the chunk hashes. Two folders
with the same files have the same id on every machine, and a hub (which publishes whole-file sha256 only) gives the same
id as the folder it was downloaded into.
"""

import hashlib

import msgspec

from .errors import MalformedMessage
from .identifiers import ModelId

CHUNK_BYTES = 4 << 20  # shard files are hashed in chunks of this size
ADAPTER_CONFIG = "adapter_config.json"  # in a folder of PEFT: weights that are added to a model's
ADAPTER = "adapter"  # the model_type of such a folder
KV_PROFILE = "kv.profile"  # how caches of exactly these weights are compressed
TEXT_FILES = (  # small files that go where the model goes; whole files, verified by sha256
    "config.json",
    ADAPTER_CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    KV_PROFILE,
)
MAX_TEXT_FILE_BYTES = 64 << 20


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    dtype: str  # safetensors' names: F32, BF16, ...
    shape: tuple[int, ...]
    file: str


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size_bytes: int
    sha256: str  # hex, of the whole file


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str  # display name: the hub id or the folder's name
    architecture: str  # config.architectures[0]
    model_type: str
    layers: int
    hidden: int
    vocabulary: int
    max_context: int  # positions
    dtype: str  # the checkpoint's: float32, bfloat16, float16
    tensors: tuple[TensorEntry, ...]  # sorted by name
    weights: tuple[FileEntry, ...]  # safetensors shards, sorted by name
    texts: tuple[FileEntry, ...]  # the TEXT_FILES that exist, sorted by name
    eos_ids: tuple[int, ...] = ()
    chunks: dict[str, tuple[str, ...]] = {}  # shard file -> hex sha256 per CHUNK_BYTES; {}: only hub's hashes known


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Manifest)


def encode(manifest: Manifest) -> bytes:
    return _encoder.encode(manifest)


def decode(data: bytes) -> Manifest:
    """raises: MalformedMessage, whatever the bytes are"""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise MalformedMessage(f"not a manifest: {error}") from error


def model_id(manifest: Manifest) -> ModelId:
    identity = msgspec.structs.replace(manifest, name="", chunks={})
    return ModelId(hashlib.sha256(b"shoal manifest 1\0" + _encoder.encode(identity)).hexdigest())
