"""Time to the first token with a prefix of 1,024 tokens that another peer holds: computed, fetched, and adaptive.

Two nodes in network namespaces with an emulated link between them, each with the whole model; the second one answers.
In one run, taking turns: `compute` (nothing is reused), `fetch` at a fixed level (all is taken first, then it
answers), `adaptive` exact (lossless chunks only) and fast (any level down to `default`). Needs root and the emulator.

    python scripts/bench/prefixes.py --wan ../shared/tools/wan.py --mbit 100 [--rounds 3] [--json FILE]
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = f"shoalkv{os.getpid()}-"
TOKENS = 1024 + 32
BITS_A_VALUE = 1.43  # of `default` on the real model of docs/measures.md, one transform a head
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
MODES = ("compute", "fetch lossless", "fetch default", "adaptive exact", "adaptive fast")


def make_model(folder: Path) -> None:
    """A random Llama with a profile whose `default` takes as many bits a value as a real model's does."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from shoal.node.kv_calibration import calibrate_files
    from shoal.swarm.manifest import KV_PROFILE

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.save_pretrained(folder)
    embedded = ROOT / "node" / "embedded" / "novels-6m"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded / name, folder / name)
    text = folder / "text.txt"
    text.write_text("".join(f"On day {day} the rain fell on {day % 13} roofs and nobody came. " for day in range(400)))
    profile = calibrate_files(folder, [text], 5, 192, backward=False)
    text.unlink()
    (folder / KV_PROFILE).write_bytes(profile.packed)
    tune(folder)


def tune(folder: Path) -> None:
    """Set the profile's steps so that `default` takes BITS_A_VALUE; on random weights calibration finds them coarse."""
    import torch
    from transformers import LlamaForCausalLM

    from shoal.compression.kv_bitstream import encode_kv
    from shoal.compression.kv_profile import parse_profile
    from shoal.node.kv_quality import block_of, cached
    from shoal.swarm.manifest import KV_PROFILE

    profile = parse_profile((folder / KV_PROFILE).read_bytes())
    model = LlamaForCausalLM.from_pretrained(folder)
    _, keys, values = cached(model, torch.randint(5, 4000, (128,)))
    block = block_of(keys, values)

    def bits(quarters: int) -> float:
        tried = dataclasses.replace(profile, steps=(quarters, quarters, quarters))
        return 8 * sum(map(len, encode_kv(block, "default", tried))) / block.shape.values

    fine, coarse = -120, 30
    while coarse - fine > 1:
        middle = (fine + coarse) // 2
        fine, coarse = (middle, coarse) if bits(middle) > BITS_A_VALUE else (fine, middle)
    made = dataclasses.replace(profile, steps=(coarse - 5, coarse, coarse + 4))
    if made.steps != profile.steps:
        (folder / KV_PROFILE).write_bytes(made.packed)
    print(f"profile: {bits(coarse):.2f} bits a value at default", flush=True)


def prompt(number: int) -> list[int]:
    return [(7 + 13 * i + 101 * number + i * i // 7) % 4000 + 5 for i in range(TOKENS)]


# The client, inside a namespace


def client(home: Path) -> None:
    """Reads one JSON line per wish, answers with one."""
    import shoal
    from shoal.node.cli.node_api import NodeApi
    from shoal.swarm.home import Home

    api = NodeApi(Home(home), 600.0)
    me = api.get("/status")["peer"]
    with shoal.connect(api.facts.api, api_key=Home(home).api_key()) as source:
        for line in sys.stdin:
            wish = json.loads(line)
            began = time.perf_counter()
            if "drop" in wish:
                api.ask("POST", "/kv/drop", {})
                answer: dict[str, Any] = {}
            elif "stat" in wish:
                answer = api.get("/kv")
            else:
                came = {}
                if wish.get("fetch"):
                    came = api.ask("POST", "/kv/fetch", {"prompt": wish["ids"], "level": wish["fetch"]})
                options = {
                    "share_prefix": wish["share"],
                    "exactness": "replay" if wish["exact"] else "fast",
                    "trust": [me],
                    "max_tokens": 2,
                }
                before = time.perf_counter() - began
                result = source.generate(wish["ids"], **options)
                hop = result.route.hops[0]
                answer = {
                    "ttft_s": before + result.route.first_token_s,
                    "stored": hop.stored,
                    "fetched": hop.fetched,
                    "ids": list(result.ids),
                    "came": came,
                }
            print(json.dumps(answer), flush=True)


class Client:
    def __init__(self, namespace: str, home: Path) -> None:
        command = [
            "ip",
            "netns",
            "exec",
            namespace,
            sys.executable,
            str(Path(__file__).resolve()),
            "--client",
            str(home),
        ]
        self.process = subprocess.Popen(  # noqa: S603  our own script
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **wish: Any) -> dict[str, Any]:  # noqa: ANN401  JSON
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(wish) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the client ended; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


# The bench


@contextlib.contextmanager
def emulated(chosen: argparse.Namespace, folder: Path) -> Iterator[None]:
    link = {"up": chosen.mbit, "down": chosen.mbit, "delay": chosen.rtt_ms / 4}
    nodes = {f"{NAMESPACE}{i + 1}": {"ip": f"10.78.0.{i + 1}", **link} for i in range(2)}
    config = folder / "wan.conf"
    config.write_text(json.dumps({"nodes": nodes}))
    process = subprocess.Popen(  # noqa: S603  the user names it
        [sys.executable, str(chosen.wan), str(config)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if "READY" not in process.stdout.readline():
        raise SystemExit("the emulator does not start: it needs root and /dev/net/tun")
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@contextlib.contextmanager
def node(number: int, home: Path, arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What it said when it was ready."""
    log = (home.parent / f"{home.name}.log").open("w")
    command = ["ip", "netns", "exec", f"{NAMESPACE}{number}", sys.executable, "-P", "-m", "shoal", *arguments]
    command += ["--host", f"10.78.0.{number}", "--no-nat", "--threads", "1", "--json", "--home", str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)  # noqa: S603  our own
    assert process.stdout is not None
    try:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                break
            if event["event"] == "error":
                raise SystemExit(f"a node does not start: {line}")
        else:
            raise SystemExit(f"a node ended; see {log.name}: {Path(log.name).read_text()[-2000:]}")
        yield event
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        log.close()


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    seen: dict[str, list[float]] = {mode: [] for mode in chosen.modes}
    parts: dict[str, list[list[int]]] = {mode: [] for mode in chosen.modes}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="st-")))
        model = chosen.model or folder / "model"
        if chosen.model is None:
            make_model(model)
        stack.enter_context(emulated(chosen, folder))
        stack.enter_context(node(1, folder / "a", ["up", str(model), "--layers", "all"]))
        line = subprocess.run(  # noqa: S603  our own
            [*f"ip netns exec {NAMESPACE}1".split(), sys.executable, "-P", "-m", "shoal", "invite", "--json",
             "--home", str(folder / "a")],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        invite = json.loads(line.splitlines()[-1])["invite"]
        stack.enter_context(node(2, folder / "b", ["join", invite, str(model), "--layers", "all"]))
        donor, taker = (Client(f"{NAMESPACE}{n}", folder / name) for n, name in ((1, "a"), (2, "b")))
        stack.callback(donor.stop)
        stack.callback(taker.stop)
        for number in range(chosen.rounds):
            donor.ask(ids=prompt(number), share=True, exact=True)
        taker.ask(ids=prompt(99), share=False, exact=True)  # pays for what is first
        taker.ask(ids=prompt(0), share=True, exact=False, fetch="default")
        while donor.ask(stat=True)["memory"]["chunks"] < chosen.rounds * 16:
            time.sleep(0.2)
        time.sleep(3.0)  # the announcements
        for number in range(chosen.rounds):
            for mode in chosen.modes:
                time.sleep(2.5)  # what the one before has left on the link arrives, and what it computed is kept
                taker.ask(drop=True)
                wish = {"ids": prompt(number), "share": mode != "compute", "exact": "exact" in mode or "less" in mode}
                wish |= {"fetch": mode.partition(" ")[2]} if mode.startswith("fetch") else {}
                answer = taker.ask(**wish)
                seen[mode].append(answer["ttft_s"])
                parts[mode].append([answer["stored"], answer["fetched"]])
                print(f"  {mode:16} {answer['ttft_s']:.2f} s {answer['stored']:5} {answer['fetched']:5}", flush=True)
        stat = donor.ask(stat=True)
    return {
        "mbit": chosen.mbit,
        "rtt_ms": chosen.rtt_ms,
        "tokens": TOKENS,
        "ttft_s": {mode: {"median": statistics.median(v), "min": min(v), "max": max(v)} for mode, v in seen.items()},
        "stored_and_fetched": parts,
        "donor": stat["counts"],
        "stored_bytes": stat["memory"]["used_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wan", type=Path, default=ROOT.parent / "shared" / "tools" / "wan.py")
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--rtt-ms", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", type=lambda text: text.split(","), default=list(MODES))
    parser.add_argument("--model", type=Path, help="a folder that --make wrote; else one is made")
    parser.add_argument("--make", type=Path, help="only write the model there")
    parser.add_argument("--client", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.client:
        client(chosen.client)
        return
    if chosen.make:
        make_model(chosen.make)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}", flush=True)
    result = measure(chosen)
    print(json.dumps(result, indent=1))
    if chosen.json:
        chosen.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
