"""What a ring of invented peers gains in standing: the random walk of `incentives/trust.py`, and max-flow beside it.

    python scripts/bench/sybils.py [--peers 1000] [--views 20]

Honest peers, and one attacker that serves as much as the others do. Honest: it is served by others, too. Attacking: it
is served by its sybils alone, in the shape that gains most (ring, star, or the work spread over all sybils' keys).
Gain: the group's share of all standing, to the share that the honest attacker has, in the mean over the views of honest
peers and in the worst view.
"""

import argparse
import random
import statistics
from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from shoal.incentives.trust import standings
from shoal.swarm.identifiers import PeerId

Graph = dict[PeerId, dict[PeerId, int]]
ATTACKER = PeerId("attacker")
DEGREE, HUGE = 12, 10**8
SAMPLE = 60  # honest peers whose flow stands for all


def sybils(size: int) -> list[PeerId]:
    return [PeerId(f"sybil {number}") for number in range(size)]


def honest_society(peers: int, seed: int) -> Graph:
    draw = random.Random(seed)
    everybody = [ATTACKER, *(PeerId(f"honest {number}") for number in range(peers))]
    return {
        client: {
            server: 1 + int(draw.lognormvariate(6, 1)) for server in draw.sample(everybody, DEGREE) if server != client
        }
        for client in everybody
    }


def ring(graph: Graph, size: int) -> Graph:
    names = sybils(size)
    inside = {a: {b: HUGE} for a, b in zip(names, [*names[1:], names[0]], strict=True)}
    return graph | inside | {ATTACKER: {names[0]: HUGE}}


def star(graph: Graph, size: int) -> Graph:
    names = sybils(size)
    return graph | {ATTACKER: dict.fromkeys(names, HUGE)} | {name: {ATTACKER: HUGE} for name in names}


def spread(graph: Graph, size: int) -> Graph:
    """Each client of the attacker is served under another key; all keys praise one another."""
    names = [ATTACKER, *sybils(size)]
    clients = [client for client in graph if client != ATTACKER and ATTACKER in graph[client]]
    told = dict(graph)
    for number, client in enumerate(clients):
        name = names[number % len(names)]
        told[client] = {(name if server == ATTACKER else server): paid for server, paid in graph[client].items()}
    for a, b in zip(names, [*names[1:], names[0]], strict=True):
        told[a] = {b: HUGE}
    return told


def walk_share(graph: Graph, view: PeerId) -> float:
    return sum(share for peer, share in standings(view, graph).items() if not peer.startswith("honest"))


def flow_share(graph: Graph, view: PeerId) -> float:
    """Standing by max-flow from the view: flows to a sample of honest peers stand for those to all of them."""
    names = sorted({*graph, *(server for out in graph.values() for server in out)})
    at = {name: index for index, name in enumerate(names)}
    rows = [(at[a], at[b], paid) for a, out in graph.items() for b, paid in out.items()]
    matrix = csr_matrix(
        (np.array([r[2] for r in rows], np.int32), ([r[0] for r in rows], [r[1] for r in rows])), (len(at), len(at))
    )

    def flow(peer: PeerId) -> float:
        return float(maximum_flow(matrix, at[view], at[peer]).flow_value)

    honest = [name for name in names if name.startswith("honest") and name != view]
    sampled = random.Random(1).sample(honest, min(SAMPLE, len(honest)))
    of_honest = statistics.mean(map(flow, sampled)) * len(honest)
    group = [name for name in names if not name.startswith("honest")]
    shown = random.Random(1).sample(group, min(SAMPLE // 3, len(group)))
    of_group = statistics.mean(map(flow, shown)) * len(group)
    return of_group / (of_group + of_honest)


def gains(
    share: Callable[[Graph, PeerId], float],
    shape: Callable[[Graph, int], Graph],
    size: int,
    chosen: argparse.Namespace,
    views: int,
) -> tuple[float, float]:
    graph = honest_society(chosen.peers, chosen.seed)
    some = random.Random(2).sample([name for name in graph if name != ATTACKER], views)
    before = [share(graph, view) for view in some]
    after = [share(shape(graph, size), view) for view in some]
    seen = [b / a for a, b in zip(before, after, strict=True) if a > 0]
    return sum(after) / sum(before), max(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--seed", type=int, default=3)
    chosen = parser.parse_args()
    print(f"{chosen.peers} honest peers, {DEGREE} servers each, {chosen.views} views (max-flow: 4)")
    print("sybils  shape   walk: mean  worst   max-flow: mean")
    for size in (10, 50, 400):
        for shape in (ring, star, spread):
            mean, worst = gains(walk_share, shape, size, chosen, chosen.views)
            flow, _ = gains(flow_share, shape, size, chosen, 4)
            print(f"{size:6}  {shape.__name__:7} {mean:10.3f} {worst:6.3f} {flow:16.1f}", flush=True)


if __name__ == "__main__":
    main()
