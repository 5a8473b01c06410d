"""PeerID text <-> ed25519 public key.

A libp2p PeerID of an ed25519 key is the base58 of an identity multihash (00 24) over the protobuf PublicKey
(08 01 12 20 and 32 key bytes). Keys of small order (a signature by them proves nothing) and non-canonical
encodings of y are refused, which `cryptography` does not do.

source: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md; RFC 8032 section 5.1.3
"""

from functools import lru_cache

import base58

from .errors import MalformedMessage
from .identifiers import PeerId

PUBLIC_KEY_BYTES = 32
PEER_ID_TEXT_LENGTH = 52  # of every ed25519 PeerID: 38 bytes with a leading zero byte
_HEAD = bytes.fromhex("002408011220")
_P = 2**255 - 19
_SIGN = 1 << 255
# y of the eight points whose order divides 8 (both signs of x share one y)
SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _P - 1,
        int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
        int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
    }
)


def check_public_key(public_key: bytes) -> None:
    """raises: MalformedMessage for a wrong length, y >= p, or a point of small order"""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise MalformedMessage(f"an ed25519 public key has 32 bytes, not {len(public_key)}")
    y = int.from_bytes(public_key, "little") % _SIGN
    if y >= _P:
        raise MalformedMessage("ed25519 public key is not in canonical form")
    if y in SMALL_ORDER_Y:
        raise MalformedMessage("ed25519 public key is of small order")


def from_public_key(public_key: bytes) -> PeerId:
    """raises: MalformedMessage"""
    check_public_key(public_key)
    return PeerId(base58.b58encode(_HEAD + public_key).decode())


@lru_cache(maxsize=8192)
def public_key_of(peer: PeerId) -> bytes:
    """raises: MalformedMessage unless the text is the PeerID of a sound ed25519 key, in its only spelling"""
    if len(peer) != PEER_ID_TEXT_LENGTH:  # before base58, whose cost grows with the square of the length
        raise MalformedMessage(f"not an ed25519 PeerID: {peer[:64]!r}")
    try:
        raw = base58.b58decode(peer)
    except ValueError as error:
        raise MalformedMessage(f"not an ed25519 PeerID: {peer!r}") from error
    if len(raw) != len(_HEAD) + PUBLIC_KEY_BYTES or raw[: len(_HEAD)] != _HEAD:
        raise MalformedMessage(f"not an ed25519 PeerID: {peer!r}")
    if base58.b58encode(raw).decode() != peer:
        raise MalformedMessage(f"not a canonical PeerID: {peer!r}")
    check_public_key(raw[len(_HEAD) :])
    return raw[len(_HEAD) :]


def is_peer_id(text: str) -> bool:
    try:
        public_key_of(PeerId(text))
    except MalformedMessage:
        return False
    return True


def short(peer: PeerId) -> str:
    """The last eight characters: the first ones are equal in all ed25519 PeerIDs."""
    return peer[-8:]
