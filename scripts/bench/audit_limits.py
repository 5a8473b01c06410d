"""The limits that a node finds by itself, beside what was measured on text: honest distances, and int8 weights.

    OMP_NUM_THREADS=1 python scripts/bench/audit_limits.py [--corpus FOLDER] [--json FILE]

`novels-6m` in embed+0:4 and 4:8, as in `audits.py`. Each limit is found three times: from one chunk of real hidden
states for 4:8, from random ids for embed+0:4. Beside it the distances of 64 chunks of text that were computed as
sessions come, and with weights rounded to int8, all on this machine.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from audit_runs import BACK, CPU, FRONT, bases, behind, core_of, distances, floats, quantised, replayed, served, texts

from shoal.compression import activations
from shoal.incentives.audit_evidence import ChunkEvidence
from shoal.incentives.work_chunks import CHUNK_POSITIONS, Given, Made
from shoal.incentives.work_statement import Served
from shoal.node.audit_memory import AuditMemory
from shoal.node.audit_records import SessionRecords
from shoal.node.class_limits import ClassLimits
from shoal.node.engine import Engine
from shoal.node.hosted_models import HostedModel, HostedModels
from shoal.node.model_source import EMBEDDED, LocalModel, resolve
from shoal.node.shard import Shard
from shoal.swarm.identity import Identity
from shoal.swarm.units import Span

LENGTH, SESSIONS, TIMES = 128, 16, 3
ROOT = Path(__file__).parents[2]


def found(model: LocalModel, dtype: str, span: Span, chunk: bytes) -> tuple[list[float], float]:
    """Limits, and seconds for one."""
    engine = Engine(Shard.load(model, Span(0, model.manifest.layers + 2), dtype, CPU), 8192)
    hosted = HostedModels()
    hosted.add(HostedModel(model.model_id, model.manifest, {}, engine.shard.span, dtype, "cpu", engine))
    evidence = ChunkEvidence(b"", 0, CHUNK_POSITIONS, (Given((), chunk),), Made(b"", ()), ())
    about = Served(bytes.fromhex(model.model_id), dtype, dtype, span)

    async def several() -> list[float]:
        limits = []
        for _ in range(TIMES):
            records = SessionRecords(Identity.generate(), lambda _: model.manifest, anyio.current_time)
            limits.append((await ClassLimits(hosted, records, AuditMemory(None)).threshold(about, evidence)).limit)
        return limits

    began = time.perf_counter()
    try:
        return anyio.run(several), (time.perf_counter() - began) / TIMES
    finally:
        engine.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        model = resolve(EMBEDDED, folder)
        ids = texts(options.corpus, SESSIONS, LENGTH, 77)
        for dtype in ("float32", "bfloat16"):
            core, cheat = core_of(model, dtype), core_of(quantised(folder, 8, folder / "cache"), dtype)
            for span in (FRONT, BACK):
                sessions = behind(core, ids, span)
                again, before = replayed(core, span, sessions), bases(core, span, sessions)
                again_f = [floats(made, LENGTH) for made in again]
                far = {}
                for who, by in (("honest", core), ("int8", cheat)):
                    made = served(by, span, sessions, CHUNK_POSITIONS, SESSIONS)
                    far[who] = distances([floats(m, LENGTH) for m in made], again_f, before)
                hidden = behind(core, ids[:1], BACK)[0].hidden
                limits, seconds = found(model, dtype, span, activations.cut(hidden, LENGTH, 0, CHUNK_POSITIONS))
                row = {
                    "dtype": dtype,
                    "span": f"{span.start}:{span.stop}",
                    "limits": limits,
                    "seconds": seconds,
                    "honest_largest": float(np.max(far["honest"])),
                    "int8_smallest": float(np.min(far["int8"])),
                }
                report.append(row)
                print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
