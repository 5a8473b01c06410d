"""What the lanes get of a node while they compete: positions of a batch, and room for sessions.

The free lane is held to its share while somebody of another lane waits, and has that share however many pay. What
nobody else wants it may use.
"""

from shoal.swarm.sessions.lanes import Lane

FREE_PART = 6  # the free lane has one in so many
WEIGHTS = {Lane.PAID: 3, Lane.EARNED: 2, Lane.FREE: 1}


def free_positions(batch_tokens: int) -> int:
    """Positions of a batch that the free lane has, and does not exceed, while another lane waits."""
    return max(1, batch_tokens // FREE_PART)


def has_room(lane: Lane, tokens: int, free_lane: int, others: int, capacity: int) -> bool:
    """Whether a session of so many tokens may have its room in a node's cache; all sizes are in tokens.

    free_lane, others: what sessions of the free lane and of the other two hold already
    Paying sessions leave the share of the free lane alone. The free lane may hold half of what the others leave
    unused, so that whoever pays finds room at once.
    """
    share = capacity // FREE_PART
    if lane is not Lane.FREE:
        return others + tokens <= capacity - max(share, free_lane)
    unused = max(0, capacity - share - others)
    return free_lane + tokens <= share + unused // 2
