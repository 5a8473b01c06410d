"""Five trainers over 30 rounds, undisturbed and under chaos: kill -9 each third round, a newcomer each fourth.

    python scripts/bench/training_chaos.py --results FILE [--only calm|chaos] [--corpus DIR] [--rounds 30] [--peers 5]
                                           [--interval 40] [--seed 0]

Every trainer is `shoal train` in a process and a home of its own, over a daemon of its own on loopback; whoever joins
gets parameters and history from those that are there. The victim and the moment within its round are drawn by the seed;
one that has not taken part yet is not killed. A node that only lets people in founds the swarm, so that every trainer
may die. Both ways train the same random Llama of 167,000 parameters on novels, byte by byte: small enough that its loss
falls slowly towards the end, where peers that come and go could do harm. --results keeps what was run, and the
comparison is printed when both are there.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from shoal.node.local_swarm import LocalNode, create_invite, environment, start_node
from shoal.swarm.home import Home

Event = dict[str, Any]
ROOT = Path(__file__).parents[2]
HELD_OUT = "sherlock.txt"
SEQUENCE, END = 64, 256
KILL_EVERY, JOIN_EVERY = 3, 4
END_S = 60.0  # of the others, once the first has done all rounds
ONE_ROUND_S = 200.0  # a round that takes longer is the end of the benchmark
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": END + 1,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": SEQUENCE,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": END,
}
CONFIG = """
name = "chaos"
model = {model}
initial = "random"
rounds = {rounds}

[data]
files = [{books}]
held_out = [{held_out}]
sequence = {sequence}

[batch]
sequences = 8
precision = "float32"

[strategy]
name = {strategy}
interval = {interval}

[inner]
learning_rate = 3e-3

[inner.schedule]
kind = "cosine"
warmup = 100

[evaluation]
every = {rounds}
sequences = 512

[output]
checkpoint_every = 5
"""


class Crew:
    """The trainers of one run, dead ones too, and what all of them have said of its rounds."""

    def __init__(self, folder: Path, config: Path) -> None:
        self._folder, self._config = folder, config
        self._door = start_node(folder, "door", ["--gateway-only", "--api-port", "0"])
        self.all: list[LocalNode] = []
        self._door.wait_for("ready")

    def start(self) -> LocalNode:
        """Returns at once."""
        name = f"peer{len(self.all)}"
        home = Home(self._folder / name)
        command = [sys.executable, "-m", "shoal", "train", str(self._config), "--home", str(home.root), "--name", name]
        command += ["--host", "127.0.0.1", "--api-port", "0", "--json", "--invite", create_invite(self._door)]
        process = subprocess.Popen(  # noqa: S603  our own command line
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(),
        )  # fmt: skip
        node = LocalNode(name, home, process)
        node.read_output()
        self.all.append(node)
        return node

    @property
    def living(self) -> list[LocalNode]:
        return [node for node in self.all if node.process.poll() is None]

    def newest(self) -> int:
        """The last round that anybody has applied, -1 for none."""
        return max((event["round"] for node in self.all for event in said(node, "round_done")), default=-1)

    def close(self) -> None:
        for node in [*self.all, self._door]:
            node.stop()


def said(node: LocalNode, name: str) -> list[Event]:
    return [event for event in list(node.events) if event["event"] == name]


def own_rounds(node: LocalNode) -> list[int]:
    """Those in which its update counted; none before it has said who it is."""
    if not said(node, "identified"):
        return []
    me = node.event("identified")["peer"]
    return [event["round"] for event in said(node, "round_done") if me in event["peers"]]


def rounds_as_they_come(crew: Crew, rounds: int) -> Iterator[int]:
    """Each round's number soon after its end. raises: SystemExit when nothing goes on"""
    newest, since = -1, time.perf_counter()
    while newest < rounds - 1:
        found = crew.newest()
        if found > newest:
            yield from range(newest + 1, found + 1)
            newest, since = found, time.perf_counter()
        failed = [node for node in crew.all if node.process.poll() not in (None, 0, -9)]
        if failed or time.perf_counter() - since > ONE_ROUND_S:
            last = "\n".join(f"{n.name} {n.process.poll()} {n.events[-2:]} {n.errors[-3:]}" for n in crew.all)
            raise SystemExit(f"no round after {newest} within {ONE_ROUND_S:.0f} s, or a trainer failed:\n{last}")
        time.sleep(0.05)


def train(chosen: argparse.Namespace, *, chaos: bool) -> Event:
    draw = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        crew = Crew(folder, config_in(folder, chosen))
        try:
            for _ in range(chosen.peers):
                crew.start()
            began, ends, killed = time.perf_counter(), [], []
            joined: list[tuple[LocalNode, int]] = []
            for round_ in rounds_as_they_come(crew, chosen.rounds):
                ends.append(time.perf_counter())
                if not chaos or round_ == 0:
                    continue
                if round_ % JOIN_EVERY == 0:
                    joined.append((crew.start(), round_))
                if round_ % KILL_EVERY == 0:
                    time.sleep(draw.random() * statistics.median(b - a for a, b in pairwise(ends)))
                    victim = draw.choice([node for node in crew.living if own_rounds(node)])
                    victim.kill()
                    killed.append({"after_round": round_, "peer": victim.name})
            deadline = time.perf_counter() + END_S
            while crew.living and time.perf_counter() < deadline:
                time.sleep(0.1)
            took_s = time.perf_counter() - began
        finally:
            crew.close()
        return {**summary(crew, chosen.rounds), "killed": killed, "took_s": took_s, "joined": arrivals(joined)}


def byte_tokenizer() -> Tokenizer:
    signs = {sign: index for index, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({**signs, "<end>": END}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def config_in(folder: Path, chosen: argparse.Namespace) -> Path:
    model, books = folder / "model", folder / "books"
    model.mkdir()
    books.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    byte_tokenizer().save(str(model / "tokenizer.json"))
    for path in chosen.corpus.glob("*.txt"):
        shutil.copy(path, folder if path.name == HELD_OUT else books)
    config = folder / "chaos.toml"
    paths = {"model": model, "books": books, "held_out": folder / HELD_OUT}
    quoted = {name: json.dumps(str(path)) for name, path in paths.items()}
    numbers = {"rounds": chosen.rounds, "sequence": SEQUENCE, "interval": chosen.interval}
    config.write_text(CONFIG.format(**quoted, **numbers, strategy=json.dumps(chosen.strategy)))
    return config


def summary(crew: Crew, rounds: int) -> Event:
    """lost: rounds that somebody says were lost; missing: that nobody has applied; unequal: with two states"""
    states: dict[int, set[str]] = {}
    for node in crew.all:
        for event in said(node, "round_done"):
            states.setdefault(event["round"], set()).add(event["state"])
    losses = {event["loss"] for node in crew.all for event in said(node, "evaluated")}
    return {
        "rounds": len(states),
        "missing": sorted(set(range(rounds)) - states.keys()),
        "lost": sorted({event["round"] for node in crew.all for event in said(node, "round_lost")}),
        "unequal": sorted(round_ for round_, found in states.items() if len(found) > 1),
        "held_out": sorted(losses),
        "peers_a_round": statistics.mean(
            len({n.name for n in crew.all if r in own_rounds(n)}) for r in states if r
        ),
        "seconds": {
            key: statistics.median(event[key] for node in crew.all for event in said(node, "round_done"))
            for key in ("train_s", "exchange_s")
        },
        "finished": sum(node.process.returncode == 0 for node in crew.all),
        "tokens": max(
            sum(event["tokens"] for event in said(node, "round_done")) for node in crew.all
        ),
    }  # fmt: skip


def arrivals(joined: list[tuple[LocalNode, int]]) -> list[Event]:
    """started_after, caught_up, first: rounds; None where it was killed or the run was over before"""
    return [
        {
            "peer": node.name,
            "started_after": round_,
            "caught_up": next((event["round"] for event in said(node, "caught_up")), None),
            "first": min(own_rounds(node), default=None),
        }
        for node, round_ in joined
    ]


def show(results: dict[str, Event]) -> None:
    for mode, row in results.items():
        print(
            f"{mode:6} {row['rounds']} rounds in {row['took_s']:.0f} s, {len(row['killed'])} killed,"
            f" {len(row['joined'])} joined, {row['peers_a_round']:.1f} peers a round; lost {row['lost'] or 'none'},"
            f" missing {row['missing'] or 'none'}, unequal states {row['unequal'] or 'none'};"
            f" median of a round {row['seconds']['train_s']:.1f} s + {row['seconds']['exchange_s']:.1f} s;"
            f" held out {', '.join(f'{loss:.4f}' for loss in row['held_out'])}"
        )
        late = [a["first"] - a["caught_up"] for a in row["joined"] if a["first"] is not None and a["caught_up"]]
        if late:
            print(f"       newcomers took part {', '.join(map(str, late))} rounds after they had caught up")
    if {"calm", "chaos"} <= results.keys():
        calm, chaos = (results[mode]["held_out"] for mode in ("calm", "chaos"))
        print(f"held-out loss under chaos less undisturbed: {max(chaos) - min(calm):+.4f} nats")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--only", choices=["calm", "chaos"])
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared" / "corpus")
    parser.add_argument("--strategy", default="diloco")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--peers", type=int, default=5)
    parser.add_argument("--interval", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if not (chosen.corpus / HELD_OUT).exists():
        raise SystemExit(f"{chosen.corpus} does not hold the novels, {HELD_OUT} among them")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the trainers are stopped with it
    results: dict[str, Event] = json.loads(chosen.results.read_text()) if chosen.results.exists() else {}
    names = {name: version(name) for name in ("shoal", "torch", "hivemind")}
    print(f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}, {names}")
    for mode in [chosen.only] if chosen.only else ["calm", "chaos"]:
        results[mode] = train(chosen, chaos=mode == "chaos")
        chosen.results.write_text(json.dumps(results, indent=1))
    show(results)
    bad = any(row["lost"] or row["missing"] or row["unequal"] for row in results.values())
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
