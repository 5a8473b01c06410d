"""How a prefix is addressed: a chain of hashes over the model, the dtype, a scope, and the ids in chunks of 64.

A link stands for all ids up to the end of its chunk, so equal links mean equal prefixes. A hop that never sees an id
gets the links from the driver and adds its own layers: what it holds of a chunk is found under `address`.

Whoever knows a link can try prompts against it, so a link travels only with the client's leave. The scope is empty for
prefixes that are shared; the name of a session for those that only its owner shall find again.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import NewType

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.identifiers import ModelId
from shoal.swarm.units import Span

Link = NewType("Link", bytes)
Address = NewType("Address", bytes)

LINK_BYTES = 16
MAX_LINKS = 2048  # of one prompt; longer ones are shared as far as this
_DOMAIN = b"shoal prefix 1\0"


def chain(model: ModelId, dtype: str, scope: str, ids: Sequence[int]) -> tuple[Link, ...]:
    """One link for each full chunk of `ids`, MAX_LINKS at most."""
    seed = "\0".join((model, dtype, scope)).encode()
    state = hashlib.sha256(_DOMAIN + seed).digest()
    links = []
    for stop in range(CHUNK_TOKENS, min(len(ids), MAX_LINKS * CHUNK_TOKENS) + 1, CHUNK_TOKENS):
        chunk = struct.pack(f"<{CHUNK_TOKENS}I", *ids[stop - CHUNK_TOKENS : stop])
        state = hashlib.sha256(state + chunk).digest()
        links.append(Link(state[:LINK_BYTES]))
    return tuple(links)


def usable(ids: int) -> int:
    """Chunks of a prompt that need not be computed: its last position is, for the first token comes from it."""
    return max(0, ids - 1) // CHUNK_TOKENS


def decoder_layers(span: Span, layers: int) -> tuple[int, int]:
    """Of a span of units: those that have a KV cache."""
    return max(span.start, 1) - 1, min(span.stop, layers + 1) - 1


def address(link: Link, first: int, stop: int) -> Address:
    """Of what the decoder layers [first, stop) hold of the chunk that ends in `link`."""
    return Address(hashlib.sha256(link + struct.pack("<II", first, stop)).digest()[:LINK_BYTES])
