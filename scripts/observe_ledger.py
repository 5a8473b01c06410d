"""Watch a swarm's ledger from outside, with a second implementation of libp2p: every signature checked, forks named.

Needs `pip install 'shoal[light]'` and neither the daemon nor any key of the swarm. One line of JSON for each entry,
fork and unsound message.

    python scripts/observe_ledger.py --swarm ID /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW... [--seconds 60]
"""

import argparse
import json
import secrets
import sys
import time

import anyio

from shoal.incentives.entry import peer_of
from shoal.incentives.ledger_observer import ForkSeen, LedgerObserver, Observation, Signed, Unsound
from shoal.swarm.errors import ShoalError
from shoal.swarm.identifiers import PeerId, SwarmId
from shoal.swarm.transports.light_topics import light_topics


def line(seen: Observation) -> dict[str, object]:
    match seen:
        case Signed(entry):
            kind = type(entry.body).__name__.lower()
            return {"event": "entry", "author": peer_of(entry.author), "seq": entry.seq, "kind": kind}
        case ForkSeen(author, _, told):
            return {"event": "fork", "author": peer_of(author), "told": told}
        case Unsound(origin, reason):
            return {"event": "unsound", "origin": origin, "reason": reason}


def say(event: dict[str, object]) -> None:
    print(json.dumps(event), flush=True)


async def observe(swarm: SwarmId, addresses: list[str], seconds: float) -> None:
    observer = LedgerObserver(swarm)

    def heard(origin: PeerId, data: bytes) -> None:
        for seen in observer.heard(origin, data, time.perf_counter()):
            say(line(seen))

    async with light_topics(secrets.token_bytes(32), addresses) as topics:
        await topics.listen(observer.topic, heard)
        while not await topics.neighbours(observer.topic):  # noqa: ASYNC110  the library has no event for it
            await anyio.sleep(0.1)
        say({"event": "listening", "neighbours": await topics.neighbours(observer.topic)})
        await anyio.sleep(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("addresses", nargs="+", help="multiaddrs with /p2p/ of nodes")
    parser.add_argument("--swarm", required=True, help="the swarm's id")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    chosen = parser.parse_args()
    try:
        anyio.run(observe, SwarmId(chosen.swarm), chosen.addresses, chosen.seconds, backend="trio")
    except ShoalError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
