"""The kinds of peers that the simulated economy has, and how each behaves."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    VOLUNTEER = "volunteer"
    NEWCOMER = "newcomer"  # a volunteer who comes later
    FREE_RIDER = "free rider"  # asks, and never serves
    GARBAGE = "garbage server"  # answers at once with made-up numbers; comes back under a new key when it is caught
    FARMER = "farmer"  # honest for a thousand chunks, then as the one above
    SELF_DEALER = "self-dealer"  # pays itself for sessions that nobody computed, and says so of free ones too
    SYBIL = "sybil"  # one member of a ring serves, all of it pays one another
    HOARDER = "hoarder"  # serves all the time and spends everything at once, late


@dataclass(frozen=True, slots=True)
class Habits:
    """How a kind lives. A peer's values are drawn around these.

    sessions_day: that it asks for; serves: whether it offers a machine; honest: computes what it is paid for
    fakes_day: sessions a day that it makes up with keys of its own
    """

    sessions_day: float
    serves: bool
    honest: bool = True
    fakes_day: float = 0.0


HABITS = {
    Kind.VOLUNTEER: Habits(4.0, serves=True),
    Kind.NEWCOMER: Habits(4.0, serves=True),
    Kind.FREE_RIDER: Habits(4.0, serves=False),
    Kind.GARBAGE: Habits(4.0, serves=True, honest=False),
    Kind.FARMER: Habits(4.0, serves=True),
    Kind.SELF_DEALER: Habits(4.0, serves=True, fakes_day=12.0),
    Kind.SYBIL: Habits(4.0, serves=True, fakes_day=12.0),
    Kind.HOARDER: Habits(0.0, serves=True),
}

SHARES = {
    Kind.VOLUNTEER: 0.50,
    Kind.NEWCOMER: 0.16,
    Kind.FREE_RIDER: 0.15,
    Kind.GARBAGE: 0.04,
    Kind.FARMER: 0.04,
    Kind.SELF_DEALER: 0.04,
    Kind.SYBIL: 0.04,
    Kind.HOARDER: 0.03,
}

FARMED_CHUNKS = 1000  # after which a farmer cheats
RING = 10  # keys of one sybil ring
SPLURGE_DAY = 0.6  # of the simulated time: from then on hoarders spend
SPLURGE_SESSIONS_DAY = 40.0
BACK_AFTER_S = 86_400  # a cheat that was caught comes again under a new key
