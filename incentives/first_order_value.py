"""What each player adds to first order: inner products of its updates with the held-out gradient, summed over rounds.

A round moves the parameters by the sum of everybody's parts; to first order the held-out loss falls by
-<gradient, move>, which is a sum over players. Nothing has to be evaluated for groups of them.

source: Pruthi, Liu, Kale and Sundararajan, Estimating Training Data Influence by Tracing Gradient Descent (TracIn),
arXiv:2002.08484
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import numpy as np

from shoal.compression.update_codec import Values

Player = TypeVar("Player", bound=Hashable)


def first_order_values(rounds: Iterable[tuple[Values, Mapping[Player, Values]]]) -> dict[Player, float]:
    """rounds: the held-out loss's gradient before a round, (N,), and by how much each player moved the parameters, (N,)

    returns: how much of the held-out loss each took off
    """
    found: defaultdict[Player, float] = defaultdict(float)
    for gradient, moves in rounds:
        for player, move in moves.items():
            found[player] -= float(np.dot(gradient.astype(np.float64), move.astype(np.float64)))
    return dict(found)
