"""Three nodes on this machine hold different layers of a small model and answer together; one is killed meanwhile;
then they train it together.

Everything is done with the commands and the HTTP API that a user has. Nothing is left behind, except with --keep.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from quickstart_training import rounds_of, trainers, training_config

from shoal.node.cli.layer_map import draw, maps_of
from shoal.swarm.home import Home
from shoal.swarm.node_lock import running

LAYERS = {"ana": "embed+0:4", "ben": "4:8+head", "cleo": "4:8+head"}
PROMPT = "The old house stood at the end of the lane, and"
ASKED = {"prompt": PROMPT, "max_tokens": 160, "temperature": 0.7, "top_p": 0.9, "seed": 11, "stream": True}
SEEN_S = 30.0  # until every node knows the others
KILL_AFTER = 40  # pieces of text
STOP_S = 30.0


class DemoFailed(Exception):
    """One line on what did not go as it should."""


@dataclass(frozen=True, slots=True)
class Volunteer:
    name: str
    home: Home
    api: str
    pid: int

    def ask(self, path: str) -> dict[str, Any]:
        answer = httpx.get(self.api + path, headers=self.key, timeout=10)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    @property
    def key(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.home.api_key()}"}


def shoal(*arguments: str) -> list[dict[str, Any]]:
    """Run a command with --json. returns: its events. raises: DemoFailed"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    command = [sys.executable, "-P", "-m", "shoal", *arguments, "--json"]
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # until we know the process
    process = subprocess.Popen(  # noqa: S603  our own command line
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        out, err = process.communicate()
    except BaseException:
        process.terminate()  # it stops the node that it was starting
        process.communicate()
        raise
    if process.returncode:
        raise DemoFailed(f"`shoal {arguments[0]}` ended with {process.returncode}: {err.strip()}")
    return [json.loads(line) for line in out.splitlines()]


def start(folder: Path, name: str, invite: str | None = None) -> Volunteer:
    """raises: DemoFailed"""
    home = Home(folder / name)
    first = ["join", invite] if invite else ["up", "--swarm-name", "quickstart"]
    options = ["--home", str(home.root), "--name", name, "--layers", LAYERS[name], "--threads", "1"]
    events = shoal(*first, *options, "--host", "127.0.0.1", "--api-port", "0", "--detach")
    facts = {event["event"]: event for event in events}
    return Volunteer(name, home, facts["ready"]["api"], facts["detached"]["pid"])


def start_all(folder: Path) -> dict[str, Volunteer]:
    first, *others = LAYERS
    found = {first: start(folder, first)}
    invites = {name: shoal("invite", "--home", str(found[first].home.root))[0]["invite"] for name in others}
    with ThreadPoolExecutor(len(others)) as pool:
        for volunteer in pool.map(lambda name: start(folder, name, invites[name]), others):
            found[volunteer.name] = volunteer
    return found


def layer_map(gateway: Volunteer, names: set[str]) -> str:
    """raises: DemoFailed when the nodes do not find one another"""
    deadline = time.perf_counter() + SEEN_S
    while True:
        peers = gateway.ask("/shoal/v1/peers")["peers"]
        if names <= {peer["name"] for peer in peers if peer["hosted"]}:
            return "\n".join(line for model in maps_of(peers) for line in draw(model))
        if time.perf_counter() > deadline:
            raise DemoFailed(
                f"after {SEEN_S:.0f} s the swarm still lacks a node; the logs are in the homes' logs folders"
            )
        time.sleep(0.2)


def generate(gateway: Volunteer, on_piece: Callable[[int], None] | None = None) -> tuple[str, dict[str, Any]]:
    """Stream from the OpenAI endpoint to the screen. on_piece: told how many came. returns: text, route"""
    text, pieces = "", 0
    route: dict[str, Any] = {}
    print(PROMPT, end="", flush=True)
    with httpx.stream("POST", f"{gateway.api}/v1/completions", json=ASKED, headers=gateway.key, timeout=60) as answer:
        if answer.status_code != 200:
            raise DemoFailed(f"the API answered {answer.status_code}: {answer.read().decode()[:300]}")
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line.endswith("[DONE]"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise DemoFailed(f"the generation broke: {chunk['error']['message']}")
            piece = "".join(choice["text"] for choice in chunk["choices"])
            text, pieces = text + piece, pieces + 1
            print(piece, end="", flush=True)
            route = chunk.get("shoal", {}).get("route", route)
            if on_piece is not None:
                on_piece(pieces)
    print("\n")
    return text, route


def killed_meanwhile(swarm: dict[str, Volunteer]) -> tuple[str, dict[str, Any], str]:
    """The same generation, with kill -9 on the holder of 4:8+head that works for it. returns: text, route, its name"""
    killed: list[str] = []

    def kill_at(pieces: int) -> None:
        if pieces < KILL_AFTER or killed:
            return
        busy = [name for name in ("ben", "cleo") if swarm[name].ask("/shoal/v1/status")["sessions"]]
        if busy:
            os.kill(swarm[busy[0]].pid, signal.SIGKILL)
            killed.append(busy[0])
            print(f" [kill -9 {busy[0]}] ", end="", flush=True)

    text, route = generate(swarm["ana"], kill_at)
    if not killed:
        raise DemoFailed("the answer was over before anybody could be killed")
    return text, route, killed[0]


def stop_all(folder: Path) -> None:
    """Every node below the folder, those too whose start was interrupted."""
    with ThreadPoolExecutor(len(LAYERS)) as pool:
        list(pool.map(stop, [Home(folder / name) for name in LAYERS]))


def stop(home: Home) -> None:
    live = running(home.lock)
    if live is None:
        return
    with contextlib.suppress(DemoFailed):
        shoal("down", "--home", str(home.root), "--timeout", str(STOP_S))
    if running(home.lock) == live:
        os.kill(live[0], signal.SIGKILL)


@contextlib.contextmanager
def demo_folder(keep: bool) -> Iterator[Path]:
    """The homes of the nodes; they are stopped and it is removed whatever happens, unless all went well and `keep`."""
    folder = Path(tempfile.mkdtemp(prefix="shoal-quickstart-"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    went_well = False
    try:
        yield folder
        went_well = True
    finally:
        if not (keep and went_well):
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_IGN)
            stop_all(folder)
            shutil.rmtree(folder, ignore_errors=True)


def show(folder: Path, keep: bool, text: str | None) -> None:
    """raises: DemoFailed"""
    print("starting three nodes, each with some of the layers of novels-6m ...", flush=True)
    began = time.perf_counter()
    swarm = start_all(folder)
    gateway = swarm["ana"]
    print(f"a private swarm of three after {time.perf_counter() - began:.0f} s\n")
    print(layer_map(gateway, set(LAYERS)), end="\n\n")
    print(f"an answer through the OpenAI endpoint of ana, {gateway.api}/v1/completions:\n")
    expected, route = generate(gateway)
    print("it came by", ", ".join(f"{hop['name']} ({hop['layers']})" for hop in route["hops"]), end="\n\n")
    print("the same again, and in the middle one of the two holders of 4:8+head dies:\n")
    got, route, victim = killed_meanwhile(swarm)
    if got != expected:
        raise DemoFailed(f"the text changed when {victim} was killed")
    if not route.get("failovers"):
        raise DemoFailed(f"{victim} was killed and no failover was seen")
    pause = sum(failover["pause_s"] for failover in route["failovers"])
    heir = next(name for name in ("ben", "cleo") if name != victim)
    print(f"the text did not change: {heir} took over from {victim}, the answer paused for {pause:.2f} s\n")
    start_again(folder, victim)
    train(folder, text)
    if keep:
        print_commands(folder, gateway)


def train(folder: Path, text: str | None) -> None:
    """A few rounds over the three nodes. raises: DemoFailed unless the loss falls and all hold the same parameters"""
    source = text or "the sources of Python's standard library"
    print(f"now the three nodes train the model together, on {source}:\n")
    losses: list[float] = []
    with trainers(training_config(folder, text), {name: folder / name for name in LAYERS}) as processes:
        for told in rounds_of(processes.values()):
            failed = [event["message"] for event in told if event["event"] == "error"]
            if failed:
                raise DemoFailed(f"the training ended: {failed[0]}")
            first = told[0]
            if len({event["state"] for event in told}) != 1:
                raise DemoFailed(f"the nodes do not hold the same parameters after round {first['round']}")
            if first["loss"] is None:
                print(f"  round {first['round']}: {len(first['peers'])} peers have met", flush=True)
                continue
            losses.append(sum(event["loss"] for event in told) / len(told))
            sent, state = first["sent_bytes"] / 1e6, first["state"][:12]
            print(f"  round {first['round']}: loss {losses[-1]:.3f}, {sent:.1f} MB sent, state {state}", flush=True)
    if len(losses) < 2 or losses[-1] >= losses[0]:
        raise DemoFailed(f"the loss did not fall: {losses}")
    print("\nthe loss has fallen, and all three hold the same parameters\n")


def start_again(folder: Path, name: str) -> None:
    home = folder / name
    options = ["--home", str(home), "--name", name, "--layers", LAYERS[name], "--threads", "1"]
    shoal("up", *options, "--host", "127.0.0.1", "--api-port", "0", "--detach")
    print(f"{name} is back\n", flush=True)


def print_commands(folder: Path, gateway: Volunteer) -> None:
    command = Path(sys.executable).with_name("shoal")
    home = f"--home {gateway.home.root}"
    print("use it:")
    print(f"  {command} status --watch {home}")
    print(f"  {command} generate 'It was a cold morning' --route {home}")
    print(f"  {command} chat {home}")
    print(f"  OPENAI_BASE_URL={gateway.api}/v1 OPENAI_API_KEY=$({command} key show {home}) your-program")
    print("stop it:")
    print(f"  for name in {' '.join(LAYERS)}; do {command} down --home {folder}/$name; done; rm -r {folder}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the swarm running and say how to use and stop it")
    parser.add_argument("--text", metavar="PATH", help="train on this file or folder, not on the standard library")
    asked = parser.parse_args()
    keep = asked.keep
    try:
        with demo_folder(keep) as folder:
            show(folder, keep, asked.text)
    except KeyboardInterrupt:
        return 130
    except (DemoFailed, httpx.HTTPError) as error:
        print(f"\nquickstart: {error}", file=sys.stderr)
        return 1
    if not keep:
        command = Path(sys.executable).with_name("shoal")
        print("everything is stopped again. Next:")
        print(f"  {command} up               a node of your own, and an invite for a friend")
        print(f"  {command} generate 'It was a cold morning'")
        print("  README.md and docs/tutorial.md tell more; scripts/quickstart --keep leaves these three running")
    return 0


if __name__ == "__main__":
    sys.exit(main())
