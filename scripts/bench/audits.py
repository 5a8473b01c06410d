"""Audits of served chunks on novels-6m: who is found, how soon, and how often an honest node would be slashed.

    python scripts/bench/audits.py FOLDER [--sessions 32] [--forged 128] [--runs 20000] [--json FILE]

FOLDER holds the honest distances that `audit_honest.py` left there. An eighth of the sessions of each class sets the
limit, the rest says how often an honest chunk lies beyond it. Cheats and forgers are measured here with real forward
passes; runs of the sequential test then draw from what was measured, in the order of real chunks.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audit_runs import (
    BACK,
    FRONT,
    Distances,
    Session,
    bases,
    behind,
    core_of,
    distances,
    floats,
    quantised,
    replayed,
    texts,
    without,
)
from forgers import Chunks, forgeries

from shoal.incentives.audit_draw import audit_rate
from shoal.incentives.audit_threshold import GROSS, Finding, Threshold, calibrated, rounding_floor
from shoal.incentives.balances import VESTING_TICKS
from shoal.incentives.sequential_test import FAR_HONEST, GROSS_HONEST, Suspicion, false_alarm_bound
from shoal.node.engine_core import EngineCore
from shoal.node.model_source import EMBEDDED, resolve
from shoal.swarm.units import Span

ROOT = Path(__file__).parents[2]
LENGTH = 512
SESSION_CHUNKS = 8  # of one session of `audit_honest.py`
Found = list[Finding]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sessions", type=int, default=32, help="of each cheat, 16 chunks each")
    parser.add_argument("--forged", type=int, default=128, help="sessions that forgeries are held against")
    parser.add_argument("--runs", type=int, default=20000)
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, python {platform.python_version()}, torch {torch.__version__}")
    pooled = honest_distances(options.folder)
    limits, honest = thresholds(pooled)
    report: dict[str, Any] = {"honest": honest}
    show(honest)
    measured, forged = measured_cheats(options, limits)
    report["cheats"] = {name: facts for name, (facts, _) in measured.items()}
    show(report["cheats"])
    report["detection"] = {name: detection(found, options.runs) for name, (_, found) in measured.items()}
    show(report["detection"])
    report["forgers"] = forged
    show(forged)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


def show(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        print(f"{name}: {json.dumps(value)}", flush=True)


def honest_distances(folder: Path) -> dict[str, Distances]:
    parts: dict[str, list[Distances]] = {}
    for path in sorted(folder.glob("*.npz")):
        for name, values in np.load(path).items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def thresholds(pooled: dict[str, Distances]) -> tuple[dict[str, Threshold], dict[str, Any]]:
    """Limits by class (dtype and span), set on every eighth session; what the others say."""
    limits, facts = {}, {}
    chunks = far = gross = convictions = 0
    for kind in sorted({name.rsplit(" ", 2)[0] for name in pooled}):
        ways = {name: values for name, values in pooled.items() if name.startswith(kind + " ")}
        dtype = kind.split()[0]
        fitted = np.concatenate([values[_fits(len(values))] for values in ways.values()])
        limit = limits[kind] = calibrated(fitted.tolist(), rounding_floor(dtype, dtype))
        for name, values in ways.items():
            found = [limit.finding(float(value)) for value in values[~_fits(len(values))]]
            chunks += len(found)
            far += found.count(Finding.FAR)
            gross += found.count(Finding.GROSS)
            convictions += alarms(found)
            facts[name] = {"chunks": len(values), "median": float(np.median(values)), "largest": float(values.max())}
        logs = np.concatenate(list(ways.values()))
        logs = np.log(logs[logs > 0])  # equal to the last bit where prompt and replay were cut alike
        away = {"limit": limit.limit, "gross": GROSS * limit.limit}
        sigmas = {name: round((log(at) - float(logs.mean())) / float(logs.std()), 1) for name, at in away.items()}
        facts[kind] = {"limit": limit.limit, "rests_on": limit.chunks, "sigmas_of_log_distance": sigmas}
    facts["held out"] = {
        "chunks": chunks,
        "far": far,
        "gross": gross,
        "convictions": convictions,
        "95 % bound on a chunk's chance to be far, if none was": 3 / chunks,
        "the same of gross, over all chunks": 3 / sum(len(values) for values in pooled.values()),
        "assumed": {"far": FAR_HONEST, "gross": GROSS_HONEST},
        "bound on slashing an honest node within 1,000 chunks": false_alarm_bound(1000),
    }
    return limits, facts


def _fits(count: int) -> np.ndarray:
    """Every eighth session, whole: its chunks are alike, and its first ones are of the prompt."""
    return np.arange(count) // SESSION_CHUNKS % 8 == 0


def alarms(found: Found) -> int:
    suspicion, count = Suspicion(), 0
    for finding in found:
        suspicion = suspicion.after(finding)
        if suspicion.convicted:
            count, suspicion = count + 1, Suspicion()
    return count


def measured_cheats(
    options: argparse.Namespace, limits: dict[str, Threshold]
) -> tuple[dict[str, tuple[dict[str, Any], Found]], dict[str, Any]]:
    found: dict[str, tuple[dict[str, Any], Found]] = {}
    forged: dict[str, Any] = {}
    cache = options.folder / "cache"
    honest = resolve(EMBEDDED, cache)
    swaps = {bits: quantised(options.folder, bits, cache) for bits in (8, 4)}
    for dtype in ("bfloat16", "float32"):
        core = core_of(honest, dtype)
        others = {f"int{bits} weights": core_of(model, dtype) for bits, model in swaps.items()}
        if dtype == "float32":
            others["bfloat16 instead"] = core_of(honest, "bfloat16")
        for span in (FRONT, BACK):
            kind = f"{dtype} {span.start}:{span.stop}"
            sessions = behind(core, texts(options.corpus, options.sessions, LENGTH, 77), span)
            again, before = run(core, span, sessions), bases(core, span, sessions)
            for name, claimed in cheats(core, others, span, sessions, again):
                apart = distances(claimed, again, before)
                judged = [limits[kind].finding(float(d)) for d in apart]
                found[f"{kind}, {name}"] = facts_of(apart, judged), judged
            many = behind(core, texts(options.corpus, options.forged, LENGTH, 78), span)
            chunks = Chunks.of(bases(core, span, many), run(core, span, many))
            forged |= {f"{kind}, {name}": facts for name, facts in forgeries(chunks, limits[kind].limit).items()}
    return found, forged


def cheats(
    core: EngineCore,
    others: dict[str, EngineCore],
    span: Span,
    sessions: Sequence[Session],
    honest: Sequence[torch.Tensor],
) -> Iterator[tuple[str, list[torch.Tensor]]]:
    for name, other in others.items():
        yield name, run(other, span, sessions)
    for layer in range(max(0, span.start - 1), span.stop - 1):
        with without(core, layer):
            yield f"without layer {layer}", run(core, span, sessions)
    noise = torch.Generator().manual_seed(5)
    yield "garbage", [x.std() * torch.randn(x.shape, generator=noise) for x in honest]


def run(core: EngineCore, span: Span, sessions: Sequence[Session]) -> list[torch.Tensor]:
    return [floats(made, LENGTH) for made in replayed(core, span, sessions)]


def facts_of(apart: Distances, judged: Found) -> dict[str, Any]:
    return {
        "chunks": len(apart),
        "smallest": float(apart.min()),
        "median": float(np.median(apart)),
        "sound": judged.count(Finding.SOUND),
        "gross": judged.count(Finding.GROSS),
    }


def detection(found: Found, runs: int) -> dict[str, Any]:
    """Runs of a server that cheats from its first chunk (newcomer) and of one that had 1,000 chunks verified before."""
    newcomer = [until_found(found, n, 0) for n in range(runs)]
    established = [until_found(found, n, 1000) for n in range(runs)]
    return {
        "newcomer: chunks in 95 %": quantile(newcomer, 0.95),
        "newcomer: vested theft": 0.0 if max(newcomer) <= 20 else statistics.fmean(max(0, n - 20) for n in newcomer),
        "established: chunks in 95 %": quantile(established, 0.95),
        "established: found within 60": statistics.fmean(n <= 60 for n in established),
        "established: found within 200": statistics.fmean(n <= 200 for n in established),
        "established: vested theft": {
            w: statistics.fmean(max(0, n - w) for n in established) for w in (60, VESTING_TICKS)
        },
    }


def until_found(found: Found, run_number: int, sound: int) -> int:
    """Eligible chunks until the conviction."""
    draw = np.random.default_rng([run_number, sound])
    at = int(draw.integers(len(found)))
    suspicion = Suspicion(chunks=sound, sound=sound)
    for count in range(1, 5001):
        if draw.random() < audit_rate(suspicion.sound, suspicion.most):
            suspicion = suspicion.after(found[at])
            if suspicion.convicted:
                return count
        at = (at + 1) % len(found)
    return 5001


def quantile(values: list[int], share: float) -> int:
    return sorted(values)[int(share * len(values))]


if __name__ == "__main__":
    raise SystemExit(main())
