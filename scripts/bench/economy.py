"""An economy of a thousand peers over months in virtual time: who gains what, who waits, how much credit there is.

python scripts/bench/economy.py [--peers 1000] [--days 60] [--load 1.6] [--results FILE] [--plots docs/plots]
python scripts/bench/economy.py --from FILE --plots docs/plots
"""

import argparse
import json
import pickle  # noqa: TID251  a run that is stopped and goes on, in a file of our own
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from shoal.incentives.simulated_economy import BEGAN_S, DAY_S, Economy
from shoal.incentives.simulated_kinds import Kind
from shoal.incentives.simulated_peer import Gains
from shoal.incentives.standing import Standings
from shoal.swarm.identifiers import PeerId
from shoal.swarm.sessions.lanes import Lane


def gains(economy: Economy) -> list[dict[str, Any]]:
    """A row for each kind, per person of that kind.

    gain: what a kind got in the lanes that go before others for each position that it computed, against volunteers.
    The free lane is left out: whoever computes nothing has it, too.
    """
    rows = []
    honest = ahead_per_computed(economy.gains[Kind.VOLUNTEER])
    standing = standing_by_kind(economy)
    for kind, found in economy.gains.items():
        count = economy.counts[kind]
        good = sum(found.received.values())
        rows.append(
            {
                "kind": kind,
                "count": count,
                "asked": found.asked / count,
                "given up": found.given_up / max(1, found.asked),
                **{f"got {lane}": found.received[lane] / count for lane in Lane},
                "garbage got": found.spoiled / max(1, good + found.spoiled),
                "computed": found.computed / count,
                "got per computed": good / found.computed if found.computed else float("inf"),
                "gain": ahead_per_computed(found) / honest,
                "minted": found.minted / count,
                "confiscated": found.confiscated / count,
                "caught": found.caught,
                "standing": standing.get(kind, 0.0),
            }
        )
    return rows


def ahead_per_computed(found: Gains) -> float:
    """0 for a kind that computes nothing and comes into none of these lanes."""
    ahead = found.received[Lane.PAID] + found.received[Lane.EARNED]
    return ahead / found.computed if found.computed else float("inf") if ahead else 0.0


def standing_by_kind(economy: Economy) -> dict[Kind, float]:
    """Mean standing of a key (.5: as the mean of those known), as fifty honest volunteers see the last keys."""
    views = [p for p in economy.peers if p.kind is Kind.VOLUNTEER]
    seen: defaultdict[Kind, list[float]] = defaultdict(list)
    for viewer in random.Random(0).sample(views, min(50, len(views))):
        me = PeerId(viewer.key.hex())
        view = Standings.seen_by(me, economy.receipts, economy.records, economy.convicted)
        for peer in economy.peers:
            if peer is not viewer:
                seen[peer.kind].append(view.of(PeerId(peer.key.hex())))
    return {kind: statistics.mean(values) for kind, values in seen.items()}


def waits(economy: Economy) -> dict[str, dict[str, float]]:
    rows = {}
    for lane, found in economy.waits.seconds.items():
        values = sorted(wait for wait, _ in found)
        rows[str(lane)] = {
            "sessions": len(values),
            **{f"p{round(100 * q)}": values[int(q * (len(values) - 1))] for q in (0.5, 0.9, 0.95, 0.99)},
            "mean": statistics.mean(values),
        }
    return rows


def waits_by_day(economy: Economy) -> dict[str, list[tuple[int, float]]]:
    """The 95th percentile of each day."""
    rows: dict[str, list[tuple[int, float]]] = {}
    for lane, found in economy.waits.seconds.items():
        days: defaultdict[int, list[float]] = defaultdict(list)
        for wait, when in found:
            days[int((when - BEGAN_S) / DAY_S)].append(wait)
        rows[str(lane)] = [(day, sorted(values)[int(0.95 * (len(values) - 1))]) for day, values in sorted(days.items())]
    return rows


def measured(chosen: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    if chosen.state and chosen.state.exists():
        economy: Economy = pickle.loads(chosen.state.read_bytes())  # noqa: S301  our own file
    else:
        economy = Economy(chosen.peers, chosen.days, chosen.seed, chosen.load)
    economy.run(lambda: time.perf_counter() - began < chosen.seconds)
    if economy.day < int(chosen.days):
        chosen.state.write_bytes(pickle.dumps(economy))
        raise SystemExit(f"day {economy.day} of {chosen.days:.0f}; go on with the same command")
    settings = {"peers": chosen.peers, "days": chosen.days, "load": chosen.load, "seed": chosen.seed}
    return {
        "settings": settings,
        "seconds": time.perf_counter() - began,
        "honest convicted": sum(economy.gains[kind].caught for kind in (Kind.VOLUNTEER, Kind.NEWCOMER, Kind.HOARDER)),
        "gains": gains(economy),
        "waits": waits(economy),
        "waits by day": waits_by_day(economy),
        "supply": [{name: getattr(each, name) for name in each.__slots__} for each in economy.supply],
    }


def show(result: dict[str, Any]) -> None:
    print(result["settings"], f"{result['seconds']:.0f} s; honest peers convicted: {result['honest convicted']}")
    heads = [key for key in result["gains"][0] if key != "kind"]
    print(f"{'':15}" + "".join(f"{head:>17}" for head in heads))
    for row in result["gains"]:
        print(f"{row['kind']:15}" + "".join(f"{row[head]:17,.2f}" for head in heads))
    for lane, row in result["waits"].items():
        print(f"{lane:7}" + "".join(f"  {key} {value:,.0f}" for key, value in row.items()))
    print("supply at the end:", result["supply"][-1])


def plot(result: dict[str, Any], folder: Path) -> None:
    import matplotlib as mpl  # the extra `bench`

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "economy"
    from figures import drawn_to
    from matplotlib import pyplot

    days = [row["day"] for row in result["supply"]]
    with drawn_to(folder / "economy-supply.svg", "day", "million credits") as axes:
        for name in ("minted", "burned", "decayed"):
            axes.plot(days, [row[name] / 1e6 for row in result["supply"]], "--", label=f"{name}, so far")
        axes.plot(days, [row["spendable"] / 1e6 for row in result["supply"]], label="spendable")
        axes.plot(days, [row["vesting"] / 1e6 for row in result["supply"]], label="vesting")
    with drawn_to(folder / "economy-waits.svg", "day", "wait for the first quantum, s (95th percentile)") as axes:
        for lane, points in result["waits by day"].items():
            axes.plot([day for day, _ in points], [wait for _, wait in points], label=lane)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    kinds = [row["kind"] for row in result["gains"]]
    left = [0.0] * len(kinds)
    for lane in Lane:
        got = [row[f"got {lane}"] / result["settings"]["days"] for row in result["gains"]]
        axes.barh(kinds, got, left=left, label=f"got, {lane} lane")
        left = [a + b for a, b in zip(left, got, strict=True)]
    computed = [row["computed"] / result["settings"]["days"] for row in result["gains"]]
    axes.plot(computed, kinds, "k|", markersize=14, label="computed for others")
    axes.set_xlabel("positions a day and person")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "economy-gains.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--days", type=float, default=60.0)
    parser.add_argument("--load", type=float, default=1.6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="where a run that takes longer than --seconds is kept")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--results", type=Path)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--plots", type=Path)
    chosen = parser.parse_args()
    result = json.loads(chosen.source.read_text()) if chosen.source else measured(chosen)
    if chosen.results:
        chosen.results.write_text(json.dumps(result))
    show(result)
    if chosen.plots:
        plot(result, chosen.plots)


if __name__ == "__main__":
    main()
