"""Names of things that several modules exchange."""

from typing import NewType

PeerId = NewType("PeerId", str)  # base58 libp2p PeerID of an ed25519 key: 12D3KooW...
ModelId = NewType("ModelId", str)  # hex sha256 of the canonical manifest, 64 characters
SessionId = NewType("SessionId", str)  # 32 hex characters, drawn by the driver
SwarmId = NewType("SwarmId", str)  # hex sha256 over the swarm's name and owner key, 64 characters

PROTOCOL_VERSION = 3
