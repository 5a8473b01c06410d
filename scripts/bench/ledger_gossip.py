"""How the ledger spreads, simulated: when do all know of a fork, and is it honoured where servers want witnesses?

A thousand peers open sessions; some of them fork: two OPENs of one number, shown to two servers. One column a setting:
without witnesses; with five of seven; with members' lists that differ; with one and two of each forger's witnesses in
league with it; and, to show the limit, with three. In virtual time; only `wall_s` is measured on this machine. Ends
with 1 when a fork stayed unknown to somebody, took longer than 10 s (p99), or was honoured twice although no more than
two witnesses lied.

    python scripts/bench/ledger_gossip.py [--peers 1000] [--forgers 20] [--seeds 1] [--json FILE]
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from shoal.incentives.simulated_gossip import GossipScenario, GossipSimulation

SETTINGS: dict[str, dict[str, object]] = {
    "gossip alone": {},
    "5 of 7": {"witnessed": True},
    "lists differ": {"witnessed": True, "blind": 0.02},
    "5 of 7, 1 lies": {"witnessed": True, "colluding": 1},
    "5 of 7, 2 lie": {"witnessed": True, "colluding": 2},
    "lists differ, 1 lies": {"witnessed": True, "blind": 0.02, "colluding": 1},
    "5 of 7, 3 lie": {"witnessed": True, "colluding": 3},
}
WITHOUT_PROMISE = ("gossip alone", "5 of 7, 3 lie")
P99_S = 10.0


def measure(name: str, scenario: GossipScenario) -> dict[str, float | str]:
    began = time.perf_counter()
    figures = GossipSimulation(scenario).run().figures()
    gc.collect()
    return {"setting": name, "seed": scenario.seed, **figures, "wall_s": time.perf_counter() - began}


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": platform.python_version(), "shoal": version("shoal")}


def shown(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value


def failures(run: dict[str, float | str]) -> list[str]:
    found = []
    if run["never learnt"]:
        found.append(f"{run['never learnt']} peers never learnt of a fork")
    if float(run["known_p99_s"]) > P99_S:
        found.append(f"p99 {run['known_p99_s']} s")
    if run["setting"] not in WITHOUT_PROMISE and run["both branches honoured"]:
        found.append(f"{run['both branches honoured']} forks honoured twice")
    return [f"{run['setting']}, seed {run['seed']}: {what}" for what in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--forgers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=40.0, help="simulated, in which forks happen")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    gc.disable()  # the collector looks through a million live entries again and again; a run is collected as a whole
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    plain = GossipScenario(peers=chosen.peers, forgers=chosen.forgers, duration_s=chosen.seconds, after_s=20.0)
    runs = []
    for seed in range(chosen.seeds):
        for name in chosen.settings:
            run = measure(name, replace(plain, seed=seed, **SETTINGS[name]))
            runs.append(run)
            print(f"\n{name}, seed {seed}")
            print("\n".join(f"  {key:28}{shown(value):>12}" for key, value in run.items() if key != "setting"))
            sys.stdout.flush()
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": about, "runs": runs}, indent=1))
    wrong = [what for run in runs for what in failures(run)]
    promise = "every fork known to all in time, none honoured twice while two witnesses lie at most"
    print("\n" + ("\n".join(wrong) or promise))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
