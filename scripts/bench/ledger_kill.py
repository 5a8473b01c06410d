"""kill -9 of a process that keeps a ledger, at random instants, over and over on one file.

After each kill the next process must find: balances equal to those that the entries give (drift 0), debits equal to
credits, and an own chain that holds every entry that ever left the machine, with one hash for each place.

    python scripts/bench/ledger_kill.py [--kills 1000] [--most-ms 60] [--json FILE]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shoal.incentives import entry as entries
from shoal.incentives.store import Store
from shoal.node.local_swarm import environment

CHILD = Path(__file__).with_name("ledger_child.py")
NODE_SEED = bytes([7]) * 32


def run_and_kill(path: Path, seed: int, after_s: float, *, starting: bool) -> list[str]:
    """What the process told before it was killed, so long after it had begun to work, or to start."""
    with subprocess.Popen(  # noqa: S603  our own script
        [sys.executable, str(CHILD), str(path), str(seed)], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        first = "" if starting else process.stdout.readline()
        time.sleep(after_s)
        process.kill()
        told = first + process.stdout.read()
    if not told.endswith("\n"):
        told = told[: told.rfind("\n") + 1]  # half a line did not leave whole
    return told.splitlines()


def kill_often(path: Path, kills: int, most_s: float, seed: int = 0, report: int = 0) -> dict[str, Any]:
    """returns: the counts; everything but `kills`, `entries` and `settled_late` should be 0"""
    draw = random.Random(seed)
    left: dict[int, str] = {}  # seq -> hash, of all that ever left the machine
    counts = {"kills": kills, "drifted": 0, "unbalanced": 0, "forked": 0, "lost": 0, "settled_late": 0}
    for number in range(kills):
        starting = draw.random() < 0.1
        after_s = draw.uniform(0.1, 0.4) if starting else draw.uniform(0, most_s)
        first, *told = run_and_kill(path, draw.getrandbits(32), after_s, starting=starting) or [""]
        if not first:
            continue  # killed before it could say anything
        word, drifted, imbalance, length, owed = first.split()
        assert word == "start", first
        counts["drifted"] += int(drifted)
        counts["unbalanced"] += int(imbalance) != 0
        counts["lost"] += bool(left) and int(length) <= max(left)
        counts["settled_late"] += int(owed)
        for line in told:
            seq, digest = line.split()
            counts["forked"] += left.setdefault(int(seq), digest) != digest
        if report and (number + 1) % report == 0:
            print(f"{number + 1} kills: {counts}", flush=True)
    store = Store(path)
    counts["drifted"] += store.drifted
    counts["unbalanced"] += store.balances.imbalance() != 0
    counts["entries"] = sum(chain.length for chain in store.chains.values())
    own = {entry.seq: entries.hash_of(entry).hex() for entry in store.of(_own_key())}
    counts["forked"] += sum(own.get(seq, digest) != digest for seq, digest in left.items())
    counts["lost"] += sum(seq not in own for seq in left)
    store.close()
    return counts


def _own_key() -> bytes:
    from shoal.swarm.identity import Identity

    return Identity(NODE_SEED).public_key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--most-ms", type=float, default=60.0, help="a process works so long at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="shoal-ledger-") as folder:
        counts = kill_often(Path(folder) / "ledger.sqlite", chosen.kills, chosen.most_ms / 1e3, chosen.seed, report=50)
    print(f"{counts} in {time.perf_counter() - began:.0f} s")
    if chosen.json:
        chosen.json.write_text(json.dumps(counts))
    if any(counts[name] for name in ("drifted", "unbalanced", "forked", "lost")):
        raise SystemExit("the ledger was damaged")


if __name__ == "__main__":
    main()
