"""One entry of a peer's chain: its one encoding, its hash, its signature.

The hash does not cover the signature: whoever varies a signature has not made another entry. It covers the body by the
body's own hash, so that the proof of a fork is small however large the entries are.
"""

from functools import lru_cache
from hashlib import sha256

import msgspec

from shoal.swarm import identity, peer_id
from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity

from .bodies import MAX_ENTRY_BYTES, AnyBody, Branch, Count, Hash, Key, Rotate, Seconds, Signature

SIGN_DOMAIN = "ledger-entry"
CONSENT_DOMAIN = "ledger-rotate"
NO_HASH = bytes(32)  # before the first entry of a chain
_HASH_HEAD = b"shoal/1/ledger-hash\0"
_BODY_HEAD = b"shoal/1/ledger-body\0"


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    author: Key
    seq: Count
    prev: Hash  # of the author's entry before; of the ROTATE entry, when the author is a new key of an old account
    time: Seconds
    body: AnyBody
    signature: Signature


class _Unsigned(msgspec.Struct, frozen=True, array_like=True):
    author: bytes
    seq: int
    prev: bytes
    time: int
    body: bytes


_codec = Canonical(Entry, "a ledger entry", MAX_ENTRY_BYTES)
_unsigned = msgspec.msgpack.Encoder()


def encode(entry: Entry) -> bytes:
    return _codec.encode(entry)


def decode(data: bytes) -> Entry:
    """Canonical or refused; says nothing about the signature. raises: MalformedMessage, whatever the bytes are"""
    return _codec.decode(data)


def hash_of(entry: Entry) -> bytes:
    """32 bytes: domain-separated SHA-256 over everything but the signature."""
    return _hash(entry.author, entry.seq, entry.prev, entry.time, body_hash(entry.body))


def body_hash(body: AnyBody) -> bytes:
    return sha256(_BODY_HEAD + _unsigned.encode(body)).digest()


def branch_of(entry: Entry) -> Branch:
    return Branch(entry.prev, entry.time, body_hash(entry.body), entry.signature)


def hash_of_branch(author: bytes, seq: int, branch: Branch) -> bytes:
    """The hash of the entry that it is a branch of."""
    return _hash(author, seq, branch.prev, branch.time, branch.body)


def is_signed_branch(author: bytes, seq: int, branch: Branch) -> bool:
    """Whether the author signed that entry; False for weak keys."""
    try:
        peer = peer_of(author)
    except MalformedMessage:
        return False
    return identity.verify(peer, SIGN_DOMAIN, hash_of_branch(author, seq, branch), branch.signature)


def _hash(author: bytes, seq: int, prev: bytes, time: int, body: bytes) -> bytes:
    return sha256(_HASH_HEAD + _unsigned.encode(_Unsigned(author, seq, prev, time, body))).digest()


def write(author: Identity, seq: int, prev: bytes, time: int, body: AnyBody) -> Entry:
    """A signed entry. Whoever calls this has stored nothing yet: see `store.Store.append_own`."""
    signature = author.sign(SIGN_DOMAIN, _hash(author.public_key, seq, prev, time, body_hash(body)))
    return Entry(author.public_key, seq, prev, time, body, signature)


def consent(new: Identity, old_key: bytes, seq: int, prev: bytes) -> Rotate:
    """The body that hands the account of `old_key` over to `new`, at this place of the chain and nowhere else."""
    return Rotate(new.public_key, new.sign(CONSENT_DOMAIN, _consent_message(old_key, seq, prev)))


def _consent_message(old_key: bytes, seq: int, prev: bytes) -> bytes:
    return old_key + seq.to_bytes(4, "big") + prev


def is_signed(entry: Entry) -> bool:
    """Whether the author signed it; False for weak keys. A ROTATE wants the new key's signature too."""
    try:
        author = peer_of(entry.author)
        if not identity.verify(author, SIGN_DOMAIN, hash_of(entry), entry.signature):
            return False
        body = entry.body
        if isinstance(body, Rotate):
            message = _consent_message(entry.author, entry.seq, entry.prev)
            return identity.verify(peer_of(body.new_key), CONSENT_DOMAIN, message, body.consent)
    except MalformedMessage:
        return False
    return True


@lru_cache(maxsize=8192)
def peer_of(key: bytes) -> PeerId:
    """raises: MalformedMessage for keys that are weak or not canonical"""
    return peer_id.from_public_key(key)
