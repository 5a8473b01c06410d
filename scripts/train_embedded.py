"""The embedded model trained again by shoal itself: three volunteers on this machine, `sparse`, on old novels.

    python scripts/train_embedded.py --corpus ../shared/corpus --folder FOLDER [--rounds 20] [--from-scratch] [--resume]
    python scripts/train_embedded.py --corpus ../shared/corpus --compare MODEL_FOLDER

Three `shoal train` processes of one private swarm, one compute thread each, start from the embedded weights and learn
from every novel but the held-out one. FOLDER/model then holds the result as a Hugging Face folder, and the last lines
compare it with the embedded model on the held-out novel: mean loss over its first 24 windows of 1024 tokens in float32,
the measure of node/embedded/novels-6m/README.md. Stopped with Ctrl-C, it goes on with --resume.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from shoal.node.local_swarm import LocalNode, create_invite, environment
from shoal.node.model_source import embedded_folder
from shoal.swarm.home import Home

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = "sherlock.txt"
NAMES = ("ana", "ben", "cleo")
WINDOWS, WINDOW = 24, 1024  # of the measure
CONFIG = """name = "embedded"
model = "novels-6m"
initial = "{initial}"
rounds = {rounds}

[data]
files = {files}
held_out = [{held_out}]
sequence = {window}

[batch]
sequences = 2
precision = "bf16"

[strategy]
name = "sparse"
interval = {interval}

[inner]
learning_rate = {rate}

[inner.schedule]
kind = "cosine"
warmup = 20

[group]
quorum = 3
grace_s = 60.0
deadline_s = 600.0

[evaluation]
every = 20
sequences = {windows}

[limits]
threads = 1

[output]
checkpoint_every = 5
"""


def written_config(chosen: argparse.Namespace) -> Path:
    corpus = chosen.corpus.resolve()
    files = sorted(str(path) for path in corpus.glob("*.txt") if path.name != HELD_OUT)
    if not files or not (corpus / HELD_OUT).exists():
        raise SystemExit(f"{corpus} does not hold the novels, {HELD_OUT} among them")
    path = Path(chosen.folder) / "embedded.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        CONFIG.format(
            initial="random" if chosen.from_scratch else "weights",
            rounds=chosen.rounds,
            files=json.dumps(files),
            held_out=json.dumps(str(corpus / HELD_OUT)),
            window=WINDOW,
            interval=chosen.interval,
            rate=chosen.rate,
            windows=WINDOWS,
        )
    )
    return path


def started(config: Path, name: str, invite: str | None, more: Sequence[str]) -> LocalNode:
    home = Home(config.parent / name)
    command = [sys.executable, "-m", "shoal", "train", str(config), "--home", str(home.root), "--name", name, *more]
    command += ["--host", "127.0.0.1", "--api-port", "0", "--json", *(["--invite", invite] if invite else [])]
    process = subprocess.Popen(  # noqa: S603  our own command
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    node = LocalNode(name, home, process)
    node.read_output()
    return node


def trained(chosen: argparse.Namespace) -> Path:
    """The folder of the first volunteer's run. raises: SystemExit"""
    config, more = written_config(chosen), ["--resume"] if chosen.resume else []
    nodes: list[LocalNode] = []
    try:
        for name in NAMES:
            member = (config.parent / name / "swarm.json").exists()
            nodes.append(started(config, name, create_invite(nodes[0]) if nodes and not member else None, more))
            nodes[-1].wait_for("ready")
        told = 0
        while any(node.process.poll() is None for node in nodes):
            told = tell(nodes[0], told)
            time.sleep(1.0)
        tell(nodes[0], told)
        failed = [node for node in nodes if node.process.returncode]
        if failed:
            raise SystemExit(f"{failed[0].name} ended with {failed[0].process.returncode}: {failed[0].errors[-3:]}")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        for node in nodes:
            node.stop()
    return nodes[0].home.root / "runs" / "embedded"


def tell(node: LocalNode, since: int) -> int:
    for event in node.events[since:]:
        match event["event"]:
            case "round_done" if event["loss"] is not None:
                print(f"round {event['round']}: {len(event['peers'])} peers, loss {event['loss']:.4f}", flush=True)
            case "evaluated":
                print(f"round {event['round']}: held-out loss {event['loss']:.4f}", flush=True)
            case "round_lost":
                print(f"round {event['round']} was lost: {event['reason']}", flush=True)
            case _:
                pass
    return len(node.events)


def held_out_loss(folder: Path, text: Path) -> float:
    """Nats a token, over the first windows of the text, in float32."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text.read_text("utf-8")).ids
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = 0.0
    with torch.no_grad():
        for index in range(WINDOWS):
            window = torch.tensor(ids[index * WINDOW : (index + 1) * WINDOW + 1])
            logits = model(input_ids=window[None, :-1]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, window[1:]))
    return total / WINDOWS


def compare(folder: Path, corpus: Path) -> None:
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}, "
        f"transformers {version('transformers')}"
    )
    for name, where in (("embedded", embedded_folder()), ("trained by shoal", folder)):
        loss = held_out_loss(where, corpus / HELD_OUT)
        print(f"{name:18} {loss:.4f} nats a token, perplexity {2.718281828459045**loss:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared/corpus")
    parser.add_argument("--folder", type=Path, help="of the three homes and the result")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--interval", type=int, default=5, help="inner steps of a round")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--from-scratch", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--compare", type=Path, metavar="MODEL_FOLDER", help="train nothing")
    chosen = parser.parse_args()
    if chosen.compare:
        return compare(chosen.compare, chosen.corpus)
    if chosen.folder is None:
        parser.error("name a --folder")
    run, model = trained(chosen), chosen.folder / "model"
    command = [sys.executable, "-m", "shoal", "models", "export", str(run), str(model), "--dtype", "bfloat16"]
    subprocess.run(command, check=True)  # noqa: S603  our own command
    return compare(model, chosen.corpus)


if __name__ == "__main__":
    main()
