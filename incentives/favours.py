"""Work that nobody paid, as debts: whoever was served for nothing owes it to whoever served.

A server opens its earned lane to those it owes. What it owes in all is what it got itself; that is shared out by the
walk of `trust` from itself over unpaid receipts, so most goes to those who served it, a little to those who served
them, and what keys of one person say of one another moves no more than that little. What it gave back in the same way
is taken off. So nobody gets more in earned lanes than 1 / RESTART of what he gave unpaid, and what was paid, hoarded or
passed in a circle gives none. Like credit, a debt halves in 30 days.
"""

from collections.abc import Collection, Mapping

from .decay import decayed, share_left
from .trust import AuditRecord, Walks

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
        return self.debts(at, audits, forked).owed(me)

    def debts(
        self, at: int, audits: Mapping[bytes, AuditRecord] | None = None, forked: Collection[bytes] = ()
    ) -> "Debts":
        """Everybody's, as they stand at this hour."""
        hour = at // 3600
        given = {
            client: {server: parts * share_left(hour - then) / _PARTS for server, (parts, then) in edges.items()}
            for client, edges in self._given.items()
        }
        return Debts(given, audits, forked)


class Debts:
    """given: unpaid ticks by client and server, faded to the hour that this is of"""

    def __init__(
        self,
        given: Mapping[bytes, Mapping[bytes, float]],
        audits: Mapping[bytes, AuditRecord] | None,
        forked: Collection[bytes],
    ) -> None:
        self._given, self._forked = given, forked
        self._walks = Walks(given, audits, forked)

    def owed(self, me: bytes) -> dict[bytes, float]:
        """As `Favours.owed`."""
        mine = self._given.get(me, {})
        got = sum(ticks for server, ticks in mine.items() if server not in self._forked)
        shares = self._walks.standings(me).items()
        debts = {other: got * share - self._given.get(other, {}).get(me, 0.0) for other, share in shares}
        return {other: debt for other, debt in debts.items() if debt > 0}
