"""What a hop (or the driver) has pushed downstream, kept so that a replacement can be brought up to date.

DESIGN 6, failover ladder, second rung: the previous hop replays its outputs into the replacement, so that only the lost
layers are computed again. Memory is bounded: beyond `limit_bytes` the oldest are dropped, and what is left can still be
replayed into a replacement that has the positions before it from a snapshot.
"""

from collections import deque
from collections.abc import Iterator

from shoal.compression import activations

from .messages import Feed

REPLAY_POSITIONS = 256  # positions in one replayed message


class KeptOutputs:
    """Consecutive feeds up to `length`. first: the position from which on they can be replayed"""

    def __init__(self, limit_bytes: int) -> None:
        self._feeds: deque[Feed] = deque()
        self._bytes = 0
        self._limit = limit_bytes
        self.length = 0  # positions
        self.first = 0

    def start_at(self, position: int) -> None:
        """Of a hop that came into its positions before this one without computing them; nothing before is kept."""
        self._feeds.clear()
        self._bytes = 0
        self.first = self.length = position

    def add(self, feed: Feed) -> None:
        self.length = feed.start + feed.count
        self._feeds.append(feed)
        self._bytes += _size(feed)
        if self._bytes > self._limit:
            self._drop(self._bytes - self._limit * 7 // 8)  # some more, so that it is not done for every token

    def _drop(self, least_bytes: int) -> None:
        """The oldest positions, so many bytes of them."""
        while least_bytes > 0:
            oldest = self._feeds.popleft()
            size = _size(oldest)
            count = min(oldest.count, -(-least_bytes * oldest.count // size))
            rest = without_held(oldest, oldest.start + count)
            self._bytes -= size
            least_bytes -= size
            self.first = oldest.start + count
            if rest is not None:
                self._feeds.appendleft(rest)
                self._bytes += _size(rest)

    def replay(self, start: int = 0) -> Iterator[Feed]:
        """Everything from `start` on again, in few messages; the last one wants a token when the last feed did.

        raises: ValueError for positions that are not kept
        """
        if start < self.first:
            raise ValueError(f"positions from {self.first} on are kept, not {start}")
        group: list[Feed] = []
        positions = 0
        for kept in self._feeds:
            feed = without_held(kept, start)
            if feed is None:
                continue
            if group and positions + feed.count > REPLAY_POSITIONS:
                yield _joined(group, wants_token=False)
                group, positions = [], 0
            group.append(feed)
            positions += feed.count
        if group:
            yield _joined(group, group[-1].wants_token)


def _size(feed: Feed) -> int:
    return len(feed.hidden) + 8 * len(feed.ids)


def _joined(group: list[Feed], wants_token: bool) -> Feed:
    hidden = b"" if group[0].ids else activations.join([(f.hidden, f.count) for f in group])
    return Feed(
        start=group[0].start,
        count=sum(f.count for f in group),
        ids=tuple(i for f in group for i in f.ids),
        hidden=hidden,
        wants_token=wants_token,
        replay=True,
        trace=(),
    )


def split(feed: Feed, count: int) -> tuple[Feed, Feed | None]:
    """The first `count` positions, which want no token, and the rest; all of it and None when it has no more."""
    if count >= feed.count:
        return feed, None
    hidden = b"" if feed.ids else activations.cut(feed.hidden, feed.count, 0, count)
    first = Feed(feed.start, count, feed.ids[:count], hidden, False, feed.replay, feed.trace)
    return first, without_held(feed, feed.start + count)


def without_held(feed: Feed, held: int) -> Feed | None:
    """The part of a replayed feed that begins at position `held`; None when nothing is left."""
    skip = held - feed.start
    if skip <= 0:
        return feed
    if skip >= feed.count:
        return None
    return Feed(
        start=held,
        count=feed.count - skip,
        ids=feed.ids[skip:],
        hidden=b"" if feed.ids else activations.tail(feed.hidden, feed.count, skip),
        wants_token=feed.wants_token,
        replay=True,
        trace=feed.trace,
    )
