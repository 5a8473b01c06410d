"""How KV caches are cut and how exactly they are kept, for those who handle them as bytes only."""

from typing import Literal

CHUNK_TOKENS = 64  # positions in one independently decodable payload

KvLevel = Literal["lossless", "near-lossless", "default", "small"]  # all but the first want a profile
LEVELS: tuple[KvLevel, ...] = ("near-lossless", "default", "small")
QUALITIES: tuple[KvLevel, ...] = ("lossless", *LEVELS)
