"""Sets of chunk numbers as they travel: sorted ranges [first, stop)."""

from collections.abc import Iterable

from shoal.swarm.errors import MalformedMessage
from shoal.swarm.prefixes.prefix_chain import MAX_LINKS

Ranges = tuple[tuple[int, int], ...]


def ranges_of(numbers: Iterable[int]) -> Ranges:
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number:
            ranges[-1] = (ranges[-1][0], number + 1)
        else:
            ranges.append((number, number + 1))
    return tuple(ranges)


def numbers_in(ranges: Ranges) -> frozenset[int]:
    """raises: MalformedMessage"""
    numbers: set[int] = set()
    for first, stop in ranges:
        if not 0 <= first < stop <= MAX_LINKS:
            raise MalformedMessage(f"chunks {first} to {stop} are none")
        numbers.update(range(first, stop))
    return frozenset(numbers)
