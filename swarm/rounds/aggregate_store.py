"""Aggregates by their hash, of the last few rounds; and whom to ask for those that are missing."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId

from .messages import Fetch
from .reducing import aggregate_hash

KEPT_ROUNDS = 3
ASKED_AT_ONCE = 64  # hashes in one request


@dataclass(slots=True)
class _Wanted:
    round: int
    candidates: list[PeerId]
    asked: int = 0
    again_at: float = 0.0


@dataclass(slots=True)
class AggregateStore:
    _payloads: dict[bytes, bytes] = field(default_factory=dict)
    _rounds: dict[int, set[bytes]] = field(default_factory=dict)
    _wanted: dict[bytes, _Wanted] = field(default_factory=dict)

    def __contains__(self, hash_: bytes) -> bool:
        return hash_ in self._payloads

    def __getitem__(self, hash_: bytes) -> bytes:
        return self._payloads[hash_]

    def get(self, hash_: bytes) -> bytes | None:
        return self._payloads.get(hash_)

    def put(self, round_: int, payload: bytes) -> bytes:
        """returns: its hash"""
        hash_ = aggregate_hash(payload)
        self._payloads[hash_] = payload
        self._rounds.setdefault(round_, set()).add(hash_)
        self._wanted.pop(hash_, None)
        return hash_

    def held(self, round_: int) -> int:
        """How many of a round are here."""
        return len(self._rounds.get(round_, ()))

    def arrive(self, payload: bytes) -> bool:
        """Keep what was asked for. returns: whether it was"""
        wanted = self._wanted.get(aggregate_hash(payload))
        if wanted is None:
            return False
        self.put(wanted.round, payload)
        return True

    def missing(self, hashes: Sequence[bytes]) -> list[bytes]:
        return [hash_ for hash_ in hashes if hash_ not in self._payloads]

    def want(self, round_: int, hash_: bytes, candidates: Sequence[PeerId], not_before: float = 0.0) -> None:
        """Ask the candidates one after another, the first first."""
        if hash_ in self._payloads:
            return
        wanted = self._wanted.get(hash_)
        if wanted is None:
            self._wanted[hash_] = _Wanted(round_, list(dict.fromkeys(candidates)), again_at=not_before)
        else:
            wanted.round = round_
            wanted.candidates = list(dict.fromkeys([*candidates, *wanted.candidates]))

    def requests(
        self, now: float, patience_s: float, me: PeerId, lost: set[PeerId], generator: random.Random
    ) -> list[tuple[PeerId, Fetch]]:
        """What is to be asked now, of whom."""
        by_peer: dict[PeerId, list[bytes]] = {}
        for hash_, wanted in self._wanted.items():
            if now < wanted.again_at:
                continue
            others = [peer for peer in wanted.candidates if peer != me]
            living = [peer for peer in others if peer not in lost] or others
            if not living:
                continue
            first = wanted.asked < 2
            peer = living[wanted.asked % len(living)] if first else generator.choice(living)
            wanted.asked += 1
            wanted.again_at = now + patience_s * min(4.0, 1.0 + wanted.asked / 4)
            by_peer.setdefault(peer, []).append(hash_)
        return [
            (peer, Fetch(tuple(hashes[i : i + ASKED_AT_ONCE])))
            for peer, hashes in by_peer.items()
            for i in range(0, len(hashes), ASKED_AT_ONCE)
        ]

    def forget(self, before_round: int) -> None:
        """Give up what belongs to earlier rounds."""
        for round_ in [r for r in self._rounds if r < before_round]:
            hashes = self._rounds.pop(round_)
            still = set().union(*self._rounds.values()) if self._rounds else set()
            for hash_ in hashes - still:
                self._payloads.pop(hash_, None)
        self._wanted = {h: wanted for h, wanted in self._wanted.items() if wanted.round >= before_round}
