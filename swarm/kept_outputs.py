"""What a hop (or the driver) has pushed downstream, kept so that a replacement can be brought up to date.

DESIGN 6, failover ladder, second rung: the previous hop replays its outputs into the replacement, so that only the lost
layers are computed again. Memory is bounded: beyond `limit_bytes` everything is dropped and replay is refused.
"""

from collections.abc import Iterator

from shoal.compression import activations

from .messages import Feed

REPLAY_POSITIONS = 256  # positions in one replayed message


class KeptOutputs:
    """Consecutive feeds from position 0. `hidden`: values per position."""

    def __init__(self, limit_bytes: int) -> None:
        self._feeds: list[Feed] = []
        self._bytes = 0
        self._limit = limit_bytes
        self.length = 0  # positions
        self.dropped = False

    def add(self, feed: Feed) -> None:
        self.length = feed.start + feed.count
        if self.dropped:
            return
        self._feeds.append(feed)
        self._bytes += len(feed.hidden) + 8 * len(feed.ids)
        if self._bytes > self._limit:
            self.drop()

    def drop(self) -> None:
        """There is no replay from here on."""
        self.dropped = True
        self._feeds.clear()

    def replay(self) -> Iterator[Feed]:
        """Everything again, in few messages; the last one wants a token when the last feed did."""
        group: list[Feed] = []
        positions = 0
        for feed in self._feeds:
            if group and positions + feed.count > REPLAY_POSITIONS:
                yield _joined(group, wants_token=False)
                group, positions = [], 0
            group.append(feed)
            positions += feed.count
        if group:
            yield _joined(group, group[-1].wants_token)


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
