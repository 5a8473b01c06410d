"""Tokens per second of one session with the ledger and without, side by side in one run.

First two real nodes, asked by a client that keeps no ledger ("off") and by one that does ("on, free": without credit,
with receipts), and two others with `--no-ledger`. Then two engines in this process on a network without delay, where
a client with credit pays: prompts in slices of 32, a word for each. Greedy, 64-token prompt, 64 new tokens; the ids
must be equal everywhere. All take turns.

    OMP_NUM_THREADS=1 python scripts/bench/ledger_throughput.py [--rounds 15] [--json FILE]
"""

import argparse
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
from inference import prompts_of
from two_engines import OpenGate, halves_of_a_model, take_turns

from shoal.incentives.ledger import Ledger
from shoal.incentives.session_meter import LedgerMetering
from shoal.incentives.session_payment import LedgerPaying
from shoal.incentives.store import Store
from shoal.node.local_swarm import create_invite, local_swarm
from shoal.swarm.home import Home
from shoal.swarm.identity import Identity
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.hop_server import HopServer
from shoal.swarm.thin_client import thin_driver

CREDIT = 10**9


async def over_nodes(folder: Path, rounds: int) -> dict[str, Any]:
    print("two real nodes:")
    layers = (["--layers", "embed+0:4"], ["--layers", "4:8+head"])
    with contextlib.ExitStack() as swarms:
        async with anyio.create_task_group() as tasks, contextlib.AsyncExitStack() as stack:
            drivers = {}
            swarm = {}
            for name, flag in (("off", "--ledger"), ("other nodes", "--no-ledger")):
                named = {f"{name[:5]}{n}": ["novels-6m", *layers[n], flag] for n in range(2)}
                swarm[name] = swarms.enter_context(local_swarm(folder / name[:5], named))
            swarm["on, free"] = swarm["off"]  # the same processes, so that nothing differs but the receipts
            for name, nodes in swarm.items():
                home, paying = Home(folder / f"client {name[:5]}"), None
                home.prepare()
                if name == "on, free":
                    me = Identity.load_or_create(home.identity)
                    ledger = Ledger(Store(home.ledger), me, time.time)  # noqa: TID251
                    tasks.start_soon(ledger.run)
                    paying = LedgerPaying(ledger)
                invite = create_invite(next(iter(nodes.values())))
                drivers[name] = await stack.enter_async_context(thin_driver(home, tasks, invite, paying))
            result = await take_turns(drivers, rounds, prompts_of("novels-6m", 1))
            tasks.cancel_scope.cancel()
    return result


async def in_process(folder: Path, rounds: int) -> dict[str, Any]:
    print("two engines in this process:")
    drivers: dict[str, Driver] = {}
    async with halves_of_a_model(folder) as halves:
        for lane, credit in (("off", None), ("on, free", 0), ("on, paid", CREDIT)):
            people = [Identity.generate() for _ in range(3)]
            client, hosting = people[2], halves.hosting(people[:2])

            def ledger_of(who: Identity, client: Identity = client, credit: int | None = credit) -> Ledger:
                ledger = Ledger(Store(folder / f"{who.peer_id}.sqlite"), who, time.time)  # noqa: TID251
                now = ledger.now()
                ledger.store.balances.mint(client.public_key, credit or 0, bytes(32), now - 25 * 3600)
                list(ledger.store.balances.advance(client.public_key, now))
                halves.tasks.start_soon(ledger.run)
                return ledger

            for who in people[:2]:
                metering = None
                if credit is not None:
                    metering = LedgerMetering(ledger_of(who), lambda _: halves.manifest, anyio.current_time)
                transport = halves.network.join(who.peer_id)
                await HopServer(transport, OpenGate(), hosting, metering=metering).start()
            paying = LedgerPaying(ledger_of(client)) if credit is not None else None
            transport = halves.network.join(client.peer_id)
            drivers[lane] = Driver(transport, OpenGate(), hosting, halves.tasks, paying=paying)
        return await take_turns(drivers, rounds, prompts_of("novels-6m", 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        for key, measure in (("nodes", over_nodes), ("in_process", in_process)):
            options = {"use_uvloop": True}
            report[key] = anyio.run(measure, Path(name), chosen.rounds, backend_options=options)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
