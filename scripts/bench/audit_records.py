"""What it costs a server to keep its work: tokens a second of one session with records and without, and their memory.

Two engines in this process on a network without delay, that hold half of `novels-6m` each. Both drivers take turns;
greedy, 64-token prompt, 64 new tokens; the ids must be equal. Then the bytes of a session's record, and how long its
statement takes.

    OMP_NUM_THREADS=1 python scripts/bench/audit_records.py [--rounds 15] [--json FILE]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
from inference import prompts_of
from two_engines import EMBEDDED, OpenGate, halves_of_a_model, take_turns

from shoal.compression import activations
from shoal.node.audit_records import SessionRecords
from shoal.node.model_source import resolve
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.identity import Identity
from shoal.swarm.manifest import Manifest, model_id
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Done
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.sessions.messages import Feed, Open
from shoal.swarm.units import Span


async def throughput(folder: Path, rounds: int) -> dict[str, Any]:
    drivers: dict[str, Driver] = {}
    async with halves_of_a_model(folder) as halves:
        for name, keeps in (("off", False), ("records", True)):
            people = [Identity.generate() for _ in range(3)]
            hosting = halves.hosting(people[:2])
            for who in people[:2]:
                records = SessionRecords(who, lambda _: halves.manifest, anyio.current_time) if keeps else None
                transport = halves.network.join(who.peer_id)
                await HopServer(transport, OpenGate(), hosting, records=records).start()
            drivers[name] = Driver(halves.network.join(people[2].peer_id), OpenGate(), hosting, halves.tasks)
        return await take_turns(drivers, rounds, prompts_of("novels-6m", 1))


def memory(manifest: Manifest, widths: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    """Of a hop in the middle: a prompt of 64 positions and 448 steps."""
    found = []
    for width, dtype in widths:
        records = SessionRecords(Identity.generate(), lambda _, w=width: _wide(manifest, w), time.perf_counter)
        name, driver = SessionId("s"), PeerId("d")
        request = Open(name, model_id(manifest), dtype, Span(2, 4), 512, driver, None, None, (), Sampling(), ())
        record = records.begin(request, driver)
        assert record is not None
        sizes = {count: activations.body_bytes(dtype, count, width) for count in (1, 64)}
        row = {count: activations.pack(dtype, count, width, bytes(size)) for count, size in sizes.items()}
        began = time.perf_counter()
        for start, count in [(0, 64), *((at, 1) for at in range(64, 512))]:
            record.worked(Feed(start, count, (), row[count], True, False, ()), Done(row[count], None, 0.0, 0.0))
        worked = time.perf_counter() - began
        record.ended()
        began = time.perf_counter()
        records.statement(driver, name, bytes(32))
        signed = time.perf_counter() - began
        found.append(
            {
                "width": width,
                "dtype": dtype,
                "bytes_a_position": record.held_bytes / 512,
                "us_a_position": worked / 512 * 1e6,
                "statement_ms": signed * 1e3,
            }
        )
        print(
            f"{width} x {dtype}: {record.held_bytes / 512:.0f} bytes and {worked / 512 * 1e6:.1f} us a position, "
            f"statement in {signed * 1e3:.2f} ms"
        )
    return found


def _wide(manifest: Manifest, width: int) -> Manifest:
    return msgspec.structs.replace(manifest, hidden=width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        manifest = resolve(str(EMBEDDED), Path(name)).manifest
        report: dict[str, Any] = {"memory": memory(manifest, ((256, "float32"), (4096, "bfloat16")))}
        report["throughput"] = anyio.run(throughput, Path(name), chosen.rounds, backend_options={"use_uvloop": True})
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
