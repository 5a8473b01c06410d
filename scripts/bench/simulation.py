"""The swarm at scale, simulated: does every lookup of covered layers find a living chain while peers are killed?

Volunteers host spans of a 32- and an 80-layer model, chosen by the real placement; a share of them is killed without a
word and as many join; clients look chains up through a simulated DHT with loss and plan them with the real routing.
One column a seed, in virtual time; only `wall_s` is measured on this machine. Ends with 1 when a covered lookup found
no chain or any chain was wrong.

    python scripts/bench/simulation.py [--peers 1000] [--churn 0.3] [--lookups 400] [--seeds 3] [--json FILE]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

from shoal.swarm.simulated.directory import DirectoryConditions
from shoal.swarm.simulation import Scenario, Simulation

ROWS = (
    ("killed", "peers killed"),
    ("joined", "peers joined"),
    ("moved", "moves"),
    ("holes_left", "  units left without a holder by them"),
    ("lookups", "lookups"),
    ("covered", "  of covered layers"),
    ("found", "    that found a living chain"),
    ("found_at_once", "      at the first try"),
    ("missed", "    that found none"),
    ("uncovered", "  of layers that nobody held"),
    ("uncovered_refused", "    that were refused"),
    ("wrong_chains", "wrong chains"),
    ("tries_at_most", "chains tried for one lookup, at most"),
    ("mean_chain", "hops in a chain, mean"),
    ("dead_hop_share", "dead hops in first chains, share"),
    ("dead_listed_share", "dead peers in listings, share"),
    ("oldest_ghost_s", "a dead peer was listed for, at most s"),
    ("mean_lookup_s", "seconds for a lookup, mean"),
    ("record_bytes", "bytes of a record"),
    ("announce_byte_s", "bytes/s a peer sends to announce itself"),
    ("lookup_bytes", "bytes that a lookup receives, mean"),
    ("events", "events"),
    ("wall_s", "seconds on this machine"),
)


def measure(scenario: Scenario) -> dict[str, object]:
    began = time.perf_counter()
    figures = Simulation(scenario).run().figures()
    return {"seed": scenario.seed, **figures, "wall_s": time.perf_counter() - began}


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": platform.python_version(), "shoal": version("shoal")}


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}"


def show(runs: list[dict[str, object]]) -> None:
    print(f"{'':42}" + "".join(f"{'seed ' + str(run['seed']):>12}" for run in runs))
    for key, label in ROWS:
        print(f"{label:42}" + "".join(f"{shown(run[key]):>12}" for run in runs))
    walls = [float(str(run["wall_s"])) for run in runs]
    print(f"\nseconds on this machine: median {statistics.median(walls):.1f} ({min(walls):.1f}..{max(walls):.1f})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--churn", type=float, default=0.3, help="share of the peers that is killed, and joins")
    parser.add_argument("--minutes", type=float, default=5.0, help="simulated")
    parser.add_argument("--lookups", type=int, default=400)
    parser.add_argument("--replicas", type=int, default=5, help="copies of a record; Kademlia's own k is 20")
    parser.add_argument("--loss", type=float, default=0.05, help="of messages of the DHT")
    parser.add_argument(
        "--review", type=float, default=float("inf"), metavar="S", help="peers consider moving so often"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{chosen.peers} peers, {chosen.churn:.0%} churn in {chosen.minutes:g} simulated minutes\n")
    directory = DirectoryConditions(replicas=chosen.replicas, asked=chosen.replicas + 3, loss=chosen.loss)
    runs = [
        measure(
            Scenario(
                peers=chosen.peers,
                duration_s=60.0 * chosen.minutes,
                churn=chosen.churn,
                lookups=chosen.lookups,
                review_s=chosen.review,
                directory=directory,
                seed=seed,
            )
        )
        for seed in range(chosen.seeds)
    ]
    show(runs)
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": about, "runs": runs}, indent=1))
    return int(any(run["missed"] or run["wrong_chains"] for run in runs))


if __name__ == "__main__":
    sys.exit(main())
