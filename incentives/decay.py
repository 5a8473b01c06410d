"""Credit that is not spent halves every 30 days. Whole numbers only, so that every machine finds the same."""

from functools import lru_cache

HALF_LIFE_HOURS = 720
# floor(2**64 * 2**(-2**i / 720)): what stays of a credit after 2**i hours
_KEPT = (
    18428993857179165969,
    18411260720637835119,
    18375845621797877956,
    18305219661902323056,
    18164781032987584869,
    17887127867006412408,
    17344488656219378714,
    16308096732066114852,
    14417396260268244673,
    11268184460901281167,
)


def decayed(amount: int, hours: int) -> int:
    """What is left of `amount` credits after whole hours, rounded down. amount: >= 0"""
    if hours <= 0 or not amount:
        return amount
    halvings, rest = divmod(hours, HALF_LIFE_HOURS)
    if halvings >= amount.bit_length():
        return 0
    left = amount << 64
    for bit, kept in enumerate(_KEPT):
        if rest >> bit & 1:
            left = left * kept >> 64
    return left >> (64 + halvings)


@lru_cache(maxsize=4096)
def share_left(hours: int) -> float:
    """What is left of anything after whole hours, as a share; where the last bit may differ."""
    return decayed(1 << 50, hours) / (1 << 50)
