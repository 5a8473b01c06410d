"""A process that keeps a ledger and is killed in the middle: see `ledger_kill.py`.

It plays a node that is client and server of many sessions at once, as fast as it can, and tells each entry that it
signs only when the store has let it go, as a node sends only then.
"""

import random
import sys
from hashlib import sha256
from pathlib import Path

from shoal.incentives import entry as entries
from shoal.incentives.bodies import WORD_BYTES, Close, Open
from shoal.incentives.entry import Entry
from shoal.incentives.payword import PayWords
from shoal.incentives.store import Owed, Store
from shoal.swarm.identity import Identity

BEGAN = 1_790_000_000
NODE = Identity(bytes([7]) * 32)
OTHERS = [Identity(bytes([n]) * 32) for n in range(20, 24)]
TICKS = 20


def told(written: list[Entry]) -> None:
    """What has left the machine."""
    for entry in written:
        sys.stdout.write(f"{entry.seq} {entries.hash_of(entry).hex()}\n")
    sys.stdout.flush()


def main(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    store = Store(path)
    # The first line: drift, imbalance, length of the own chain, and what it has to settle
    own = store.chain(NODE.public_key)
    print(f"start {int(store.drifted)} {store.balances.imbalance()} {own.length} {len(store.owed())}", flush=True)
    now = max([BEGAN, *(chain.received for chain in store.chains.values())])
    left = [Close(owed.open, owed.ticks, owed.word) for owed in store.owed()]
    if left:
        told(store.append_own(NODE, left, now))
    running: dict[bytes, tuple[PayWords, int]] = {}  # sessions that this node serves
    while True:
        now += draw.randrange(40)
        other = draw.choice(OTHERS)
        match draw.randrange(6):
            case 0:  # buys
                words = PayWords(draw.randbytes(WORD_BYTES), TICKS)
                body = Open(other.public_key, draw.randbytes(14), words.root, 3, 32, TICKS, 3600, 1)
                (opened,) = written = store.append_own(NODE, [body], now)
                told(written)
                ticks = draw.randrange(TICKS + 1)
                body_of_other = Close(entries.hash_of(opened), ticks, words.word(ticks))
                store.receive(written_by(store, other, body_of_other, now), now)
            case 1 | 2:  # sells
                words = PayWords(sha256(draw.randbytes(16)).digest()[:WORD_BYTES], TICKS)
                body = Open(NODE.public_key, draw.randbytes(14), words.root, 5, 32, TICKS, 3600, 1)
                entry = written_by(store, other, body, now)
                store.receive(entry, now)
                running[entries.hash_of(entry)] = words, 0
            case 3 | 4 if running:  # is paid a tick
                opened_hash = draw.choice(list(running))
                words, ticks = running[opened_hash]
                if ticks < TICKS:
                    running[opened_hash] = words, ticks + 1
                    store.owe_all([Owed(opened_hash, ticks + 1, words.word(ticks + 1))])
            case 5 if running:  # settles
                opened_hash, (words, ticks) = running.popitem()
                told(store.append_own(NODE, [Close(opened_hash, ticks, words.word(ticks))], now))


def written_by(store: Store, other: Identity, body: Open | Close, now: int) -> Entry:
    """The next entry of somebody else, as it comes over the network."""
    chain = store.chain(other.public_key)
    return entries.write(other, chain.length, chain.head, max(now, chain.time), body)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
