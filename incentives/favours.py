"""Work that nobody paid, as debts: whoever was served for nothing owes it to whoever served.

A server opens its earned lane to those it owes. What it owes in all is what it got itself; that is shared out by the
walk of `trust` from itself over unpaid receipts, so most goes to those who served it, a little to those who served
them, and what keys of one person say of one another moves no more than that little. What it gave back in the same way
is taken off. So nobody gets more in earned lanes than 1 / RESTART of what he gave unpaid, and what was paid, hoarded or
passed in a circle gives none. Like credit, a debt halves in 30 days.
"""

from collections.abc import Collection, Iterator, Mapping

from .decay import decayed
from .trust import AuditRecord, standings

_PARTS = 1 << 16  # of a tick, so that small debts fade and do not vanish


class Favours:
    """Unpaid ticks by client and server, as keys of accounts. at: unix seconds"""

    def __init__(self) -> None:
        self._given: dict[bytes, dict[bytes, tuple[int, int]]] = {}  # client -> server -> parts, hour

    def note(self, client: bytes, server: bytes, ticks: int, at: int) -> None:
        edges = self._given.setdefault(client, {})
        parts, hour = edges.get(server, (0, 0))
        now = max(hour, at // 3600)
        edges[server] = decayed(parts, now - hour) + ticks * _PARTS, now

    def ticks(self, client: bytes, server: bytes, at: int) -> float:
        parts, hour = self._given.get(client, {}).get(server, (0, 0))
        return decayed(parts, at // 3600 - hour) / _PARTS

    def owed(
        self,
        me: bytes,
        at: int,
        audits: Mapping[bytes, AuditRecord] | None = None,
        forked: Collection[bytes] = (),
    ) -> dict[bytes, float]:
        """Ticks that `me` owes, by account; whoever has nothing coming is not in it."""
        shares = standings(me, _Now(self._given, at // 3600), audits, forked)
        got = sum(self.ticks(me, server, at) for server in self._given.get(me, {}) if server not in forked)
        debts = {other: got * share - self.ticks(other, me, at) for other, share in shares.items()}
        return {other: debt for other, debt in debts.items() if debt > 0}


class _Now(Mapping[bytes, Mapping[bytes, int]]):
    """What the debts are at an hour; worked out for those that a walk comes to."""

    def __init__(self, given: dict[bytes, dict[bytes, tuple[int, int]]], hour: int) -> None:
        self._given, self._hour = given, hour

    def __getitem__(self, client: bytes) -> Mapping[bytes, int]:
        edges = self._given[client].items()
        return {server: decayed(parts, self._hour - hour) for server, (parts, hour) in edges}

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)
