"""What the ledger costs: bytes stored and sent for a session, checks a second, and forged receipts that get through.

    python scripts/bench/ledger.py [--sessions 5000] [--mutations 1000000] [--json FILE]

Bytes stored are the growth of a real SQLite file with many clients and servers in it, and the entries' own length.
Bytes sent are frames of the session protocol with and without payment, on one link from hop to hop. Rates are of one
core. Mutations: see `receipt_mutations.py`.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from receipt_mutations import tamper_often

from shoal.incentives import entry as entries
from shoal.incentives.bodies import TICK_TOKENS, Ack, AnyBody, Close, Open
from shoal.incentives.chain import Accepted
from shoal.incentives.entry import Entry
from shoal.incentives.payer import Payer
from shoal.incentives.payword import PayWords, step_down
from shoal.incentives.session_payment import Offer, offers
from shoal.incentives.store import Store
from shoal.swarm import messages
from shoal.swarm.framing import data_frame
from shoal.swarm.identity import Identity
from shoal.swarm.messages import Feed, PaidFeed, Progress, Tick

NOW = 1_790_000_000


def person(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


def stored_bytes(folder: Path, sessions: int, *, acknowledged: bool) -> dict[str, float]:
    """Of one session: one OPEN, one CLOSE, perhaps one ACK, between 10 clients and 20 servers in random order."""
    draw = random.Random(7)
    store = Store(folder / f"stored{int(acknowledged)}.sqlite")
    clients, servers = [person(n) for n in range(1, 11)], [person(n) for n in range(100, 120)]

    def write(who: Identity, body: AnyBody, now: int) -> Entry:
        chain = store.chain(who.public_key)
        entry = entries.write(who, chain.length, chain.head, now, body)
        assert isinstance(store.receive(entry, now), Accepted)
        return entry

    def sessions_of(count: int, start: int) -> int:
        length = 0
        for number in range(start, start + count):
            client, server, now = draw.choice(clients), draw.choice(servers), NOW + 60 * number
            words = PayWords(draw.randbytes(20), 64)
            body = Open(server.public_key, draw.randbytes(14), words.root, 224, TICK_TOKENS, 64, 3600, 1)
            opened = write(client, body, now)
            ticks = draw.randrange(1, 65)
            closed = write(server, Close(entries.hash_of(opened), ticks, words.word(ticks)), now + 40)
            written = [opened, closed]
            if acknowledged:
                written.append(write(client, Ack(entries.hash_of(closed), 0), now + 41))
            length += sum(len(entries.encode(entry)) for entry in written)
        return length

    for client in clients:
        store.balances.mint(client.public_key, 10**9, bytes(32), NOW)
    sessions_of(300, 0)  # peers, accounts and the first pages are there
    before = store.size_bytes()
    length = sessions_of(sessions, 300)
    grown = store.size_bytes() - before
    store.close()
    file_bytes = (folder / f"stored{int(acknowledged)}.sqlite").stat().st_size
    return {"sqlite": grown / sessions, "entries": length / sessions, "file": file_bytes / (sessions + 300)}


def sent_bytes(prompt: int, new: int) -> dict[str, float]:
    """Bytes a token that payment adds on the links of one hop: what comes to it, and what it tells the driver."""
    server, client = person(1), person(2)
    payer = Payer(bytes(20), prompt + new)
    body = payer.open(server.public_key, bytes(14), 224, 3600, paid=True)
    entry = entries.write(client, 70_000, bytes(32), NOW, body)
    opening = len(offers.encode(Offer(entries.encode(entry), (), 0, b""))) + 3  # the field's own head

    def size(message: messages.AnyMessage) -> int:
        return len(data_frame(messages.encode(message)))

    plain = paid = 0
    for start in range(0, prompt, 256):
        ids = tuple(range(start, min(prompt, start + 256)))
        plain += size(Feed(start, len(ids), ids, b"", start + 256 >= prompt, False, ()))
    for start in range(0, prompt, TICK_TOKENS):
        ids = tuple(range(start, min(prompt, start + TICK_TOKENS)))
        last = start + TICK_TOKENS >= prompt
        paid += size(Feed(start, len(ids), ids, b"", last, False, ()))
        payer.arrived(start + len(ids))
        if not last:
            paid += size(Progress(0, start + len(ids))) + size(Tick(payer.tick()))
    prompt_extra = paid - plain
    plain = paid = 0
    for start in range(prompt, prompt + new - 1):
        word = payer.tick()
        feed = Feed(start, 1, (start,), b"", True, False, ())
        plain += size(feed)
        paid += size(PaidFeed(start, 1, (start,), b"", True, False, (), word) if word else feed)
        payer.arrived(start + 1)
    decode_extra = paid - plain
    total = opening + prompt_extra + decode_extra
    return {
        "a_prompt_token": prompt_extra / prompt,
        "a_new_token": decode_extra / new,
        "opening": opening,
        "all_together": total / (prompt + new),
    }


def rate(work: Callable[[], int], seconds: float = 1.0, rounds: int = 5) -> dict[str, float]:
    """Things a second, median and range over rounds. work: returns how many it did"""
    rates = []
    for _ in range(rounds):
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            done += work()
        rates.append(done / (time.perf_counter() - began))
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def rates(folder: Path) -> dict[str, dict[str, float]]:
    client, server = person(1), person(2)
    words = PayWords(bytes(20), 4096)
    raws, prev = [], bytes(32)
    for seq in range(400):
        body = Open(server.public_key, seq.to_bytes(14, "big"), words.root, 224, TICK_TOKENS, 64, 3600, 1)
        entry = entries.write(client, seq, prev, NOW, body)
        raws.append(entries.encode(entry))
        prev = entries.hash_of(entry)

    def full() -> int:
        """Bytes to an entry that is signed."""
        return sum(entries.is_signed(entries.decode(raw)) for raw in raws)

    numbers = iter(range(10**6))

    def kept() -> int:
        """Bytes to an entry in the store and in the balances, one transaction each."""
        store = Store(folder / f"rate{next(numbers)}.sqlite")
        done = sum(isinstance(store.receive(entries.decode(raw), NOW), Accepted) for raw in raws)
        store.close()
        return done

    top = words.word(4096)

    def ticks() -> int:
        word = top
        for _ in range(1000):
            word = step_down(word)
        return 1000

    return {"receipts": rate(full), "receipts_stored": rate(kept), "ticks": rate(ticks)}


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=5000)
    parser.add_argument("--mutations", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    report: dict[str, Any] = {"machine": machine()}
    print(report["machine"])
    with tempfile.TemporaryDirectory(prefix="shoal-ledger-") as name:
        folder = Path(name)
        report["rates"] = rates(folder)
        for key, value in report["rates"].items():
            print(f"{key}: {value['median']:,.0f} a second ({value['min']:,.0f}..{value['max']:,.0f})")
        for acknowledged in (False, True):
            key = "stored_with_ack" if acknowledged else "stored"
            report[key] = stored_bytes(folder, chosen.sessions, acknowledged=acknowledged)
            print(f"{key}, bytes a session: { ({k: round(v, 1) for k, v in report[key].items()}) }")
    for prompt, new in ((64, 64), (64, 1000), (512, 512), (4096, 4096)):
        sent = report[f"sent_{prompt}_{new}"] = sent_bytes(prompt, new)
        print(f"sent, {prompt} + {new} tokens, bytes a token: { ({k: round(v, 3) for k, v in sent.items()}) }")
    if chosen.mutations:
        began = time.perf_counter()
        report["mutations"] = asdict(tamper_often(chosen.mutations, 1))
        print(f"mutations: {report['mutations']} in {time.perf_counter() - began:.0f} s")
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
