"""Chains of test persons, and two branches where they shall fork."""

from swarm.people import NOW, person

from shoal.incentives import entry as entries
from shoal.incentives.bodies import Open
from shoal.incentives.entry import NO_HASH, Entry
from shoal.swarm.identity import Identity

NOW_S = int(NOW)


def opening(number: int, server: Identity | None = None) -> Open:
    """A reservation at somebody; equal numbers give equal bodies."""
    server = server or person(99)
    return Open(server.public_key, number.to_bytes(16, "big"), number.to_bytes(16, "big"), 1000, 32, 64, 3600, 1)


def chain_of(author: Identity, length: int, first_number: int = 0) -> list[Entry]:
    return continued(author, [], length, first_number)


def continued(
    author: Identity, before: list[Entry], length: int, first_number: int = 0, now: int = NOW_S
) -> list[Entry]:
    """`length` entries more."""
    chain = list(before)
    for number in range(length):
        prev = entries.hash_of(chain[-1]) if chain else NO_HASH
        chain.append(entries.write(author, len(chain), prev, now, opening(first_number + number)))
    return chain
