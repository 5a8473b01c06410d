"""The key of a node: its PeerID in libp2p, the signer of its records, certificates and receipts.

The file is what the libp2p daemon reads: a protobuf PrivateKey (08 01 12 40) with 64 bytes, seed then public key.
"""

from functools import lru_cache
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from . import peer_id, private_file
from .errors import MalformedMessage, UsageError
from .identifiers import PeerId

SIGNATURE_BYTES = 64
SEED_BYTES = 32
_KEY_HEAD = bytes.fromhex("08011240")


class Identity:
    """An ed25519 private key; holds it in memory and never prints it."""

    __slots__ = ("_key", "peer_id", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.peer_id = peer_id.from_public_key(self.public_key)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    @classmethod
    def generate(cls) -> Self:
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """raises: UsageError when the file is readable by others or is not a key"""
        data = private_file.read(path)
        if data is None:
            return None
        seed, public = data[len(_KEY_HEAD) : -SEED_BYTES], data[-SEED_BYTES:]
        if len(data) == len(_KEY_HEAD) + 64 and data.startswith(_KEY_HEAD):
            identity = cls(seed)
            if identity.public_key == public:
                return identity
        raise UsageError(
            f"{path} is not an ed25519 key file; restore it from a backup, or move it away to get a new identity"
        )

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """An existing file is never overwritten; of two processes that create at once both get the same key.

        raises: UsageError, OutOfMemory (disk full)
        """
        found = cls.load(path)
        if found is not None:
            return found
        identity = cls.generate()
        if identity.write_key(path):
            return identity
        found = cls.load(path)
        if found is None:
            raise UsageError(f"{path} vanished while it was being created; try again")
        return found

    def libp2p_key(self) -> bytes:
        """The protobuf PrivateKey that the libp2p daemon reads; secret."""
        return _KEY_HEAD + self._key.private_bytes_raw() + self.public_key

    def write_key(self, path: Path) -> bool:
        """Write `libp2p_key` to a file of mode 0600; False, and nothing written, when a file is there already."""
        return private_file.write(path, self.libp2p_key(), replace=False)

    def sign(self, domain: str, message: bytes) -> bytes:
        """64 bytes. A signature for one domain is worthless in every other, and in libp2p's handshakes."""
        return self._key.sign(_framed(domain, message))


def verify(peer: PeerId, domain: str, message: bytes, signature: bytes) -> bool:
    """Whether `peer` signed this message in this domain; False, never an exception, for anything else."""
    try:
        _public_key(peer).verify(signature, _framed(domain, message))
    except (InvalidSignature, MalformedMessage):
        return False
    return True


def _framed(domain: str, message: bytes) -> bytes:
    return b"shoal/1/" + domain.encode("ascii") + b"\0" + message


@lru_cache(maxsize=4096)
def _public_key(peer: PeerId) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(peer_id.public_key_of(peer))
