"""What the ledger costs: bytes stored and sent for a session, checks a second, and forged receipts that get through.

    python scripts/bench/ledger.py [--sessions 5000] [--mutations 1000000] [--json FILE]

Bytes stored are the growth of a real SQLite file with many clients and servers in it, and the entries' own length.
Bytes sent are frames of the session protocol with and without payment, on the links of one hop. Rates are of one
core. Mutations: see `receipt_mutations.py`.
"""

import argparse
import itertools
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

from msgspec.structs import replace
from receipt_mutations import tamper_often

from shoal.compression import activations
from shoal.incentives import entry as entries
from shoal.incentives import offer as offers
from shoal.incentives.bodies import TICK_TOKENS, WORD_BYTES, Ack, AnyBody, Close, Open
from shoal.incentives.chain import Accepted
from shoal.incentives.entry import Entry
from shoal.incentives.offer import Offer
from shoal.incentives.payer import Payer
from shoal.incentives.payword import PayWords, step_down
from shoal.incentives.store import Store
from shoal.swarm.framing import data_frame
from shoal.swarm.identifiers import ModelId, SessionId
from shoal.swarm.identity import Identity
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions import messages
from shoal.swarm.sessions.feeder import PREFILL_POSITIONS
from shoal.swarm.sessions.messages import Computed, Feed, Tick, Timing, slice_of, with_word
from shoal.swarm.units import Span

NOW = 1_790_000_000
WIDTH = 256  # of hidden states, as in novels-6m
SESSIONS = ((64, 64), (64, 1000), (512, 512), (4096, 4096))


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
            words = PayWords(draw.randbytes(WORD_BYTES), 64)
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


def size(message: messages.AnyMessage) -> int:
    return len(data_frame(messages.encode(message)))


def fed(start: int, count: int, *, hidden: bool, wanted: bool) -> Feed:
    """As it comes to the first hop, or to one after another hop."""
    if not hidden:
        return Feed(start, count, tuple(range(start, start + count)), b"", wanted, False, ())
    body = bytes(activations.body_bytes("float32", count, WIDTH))
    return Feed(start, count, (), activations.pack("float32", count, WIDTH, body), wanted, False, (Timing(0.5, 1.5),))


def opening_bytes(most_tokens: int, root: bytes) -> int:
    """What an OPEN adds to the request that opens a hop: the 70,000th entry of its author, an hour after the last."""
    offer = offers.encode(Offer(70_000, True, 3600, bytes(64), root))
    driver = person(2).peer_id
    terms = (SessionId("ab" * 14), ModelId("0" * 64), "float32", Span(0, 5), most_tokens, driver, None, None, ())
    plain = messages.Open(*terms, Sampling(), ())
    return size(replace(plain, payment=offer)) - size(plain)


def sent_bytes(prompt: int, new: int, *, hidden: bool) -> dict[str, float]:
    """Bytes a token that payment adds on the links of the last hop: what comes to it, and what it tells the driver.

    hidden: another hop is before it; otherwise it is the only one
    """
    payer = Payer(bytes(WORD_BYTES), prompt + new)
    opening = opening_bytes(prompt + new, payer.open(person(1).public_key, bytes(14), 224).root)
    plain = paid = 0
    for start in range(0, prompt, PREFILL_POSITIONS):
        count = min(PREFILL_POSITIONS, prompt - start)
        plain += size(fed(start, count, hidden=hidden, wanted=start + count == prompt))
    for start in range(0, prompt, TICK_TOKENS):
        count = min(TICK_TOKENS, prompt - start)
        last, word = start + count == prompt, payer.tick()
        feed = fed(start, count, hidden=hidden, wanted=last)
        paid += size(with_word(feed, word) if last else slice_of(feed, word))
        if not last:
            paid += size(Computed(start + count))
        payer.arrived(start + count)
    prompt_extra = paid - plain
    plain = paid = 0
    for start in range(prompt, prompt + new - 1):
        feed = fed(start, 1, hidden=hidden, wanted=True)
        plain += size(feed)
        paid += size(with_word(feed, payer.tick()))
        payer.arrived(start + 1)
    last_word = payer.last()
    decode_extra = paid - plain + (size(Tick(last_word)) if last_word else 0)
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
    words = PayWords(bytes(WORD_BYTES), 4096)
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
    for hidden, (prompt, new) in itertools.product((False, True), SESSIONS):
        sent = sent_bytes(prompt, new, hidden=hidden)
        report[f"sent_{prompt}_{new}{'_hidden' * hidden}"] = sent
        link = "last of several hops" if hidden else "only hop"
        print(f"sent, {prompt} + {new} tokens, {link}, bytes a token: { ({k: round(v, 3) for k, v in sent.items()}) }")
    if chosen.mutations:
        began = time.perf_counter()
        report["mutations"] = asdict(tamper_often(chosen.mutations, 1))
        print(f"mutations: {report['mutations']} in {time.perf_counter() - began:.0f} s")
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
