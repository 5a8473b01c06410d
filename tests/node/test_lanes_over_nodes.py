"""Real nodes under load: a session that is paid generates faster than one that is free, and is paid for."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from shoal.incentives import entry as entries
from shoal.incentives.account import Account
from shoal.incentives.bodies import Train, Verdict
from shoal.incentives.store import Store
from shoal.node.books import judges_of
from shoal.node.local_swarm import LocalNode, local_swarm
from shoal.swarm.home import Home
from shoal.swarm.identity import Identity

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
NODES = {
    "server": ["novels-6m", "--ledger"],
    "rich": ["--gateway-only", "--ledger"],
    "poor": ["--gateway-only", "--ledger"],
    "crowd": ["--gateway-only", "--ledger"],
}
CREDITS = 10_000_000
CLIENTS, TRIES = 6, 3
LOOKS, PERIOD_S = 60, 0.5
LONG = "the wind blew over the hills and the old clock went on " * 90
SHORT = "It was a cold morning, and the wind blew over the hills, and nobody"


def endow(folder: Path) -> None:
    """Training of two days ago that the owner found sound, in everybody's ledger: it can be spent by now."""
    homes = {name: Home(folder / name) for name in NODES}
    for home in homes.values():
        home.prepare()
    owner, rich = (Identity.load_or_create(homes[name].identity) for name in ("server", "rich"))
    then = int(time.time()) - 2 * 86_400  # noqa: TID251  as the nodes' own clocks
    train = entries.write(rich, 0, entries.NO_HASH, then, Train(b"run", 0, CREDITS, *[bytes(32)] * 3))
    body = Verdict(rich.public_key, 1, entries.hash_of(train), 0, bytes(32), CREDITS)
    verdict = entries.write(owner, 0, entries.NO_HASH, then, body)
    for home in homes.values():
        store = Store(home.ledger, judges=judges_of(owner.peer_id))
        store.receive_all([train, verdict], then)
        store.close()


def account(folder: Path, at: str, whose: str) -> Account:
    owner, who = (Identity.load_or_create(Home(folder / name).identity) for name in ("server", whose))
    store = Store(Home(folder / at).ledger, read_only=True, judges=judges_of(owner.peer_id))
    try:
        return store.balances.account(who.public_key)
    finally:
        store.close()


def complete(node: LocalNode, prompt: str, tokens: int) -> float:
    """Seconds that it took."""
    began_s = time.perf_counter()
    asked = {"model": "novels-6m", "prompt": prompt, "max_tokens": tokens}
    headers = {"authorization": f"Bearer {node.key}"}
    answer = httpx.post(f"{node.api}/v1/completions", json=asked, headers=headers, timeout=120)
    answer.raise_for_status()
    return time.perf_counter() - began_s


@contextmanager
def crowded(node: LocalNode) -> Iterator[None]:
    """One long prompt after another, from several threads."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with suppress(httpx.HTTPError):  # whoever overloads a node hears so at times
                complete(node, LONG, 2)

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_paying_session_overtakes_free_ones_under_load(tmp_path: Path) -> None:
    endow(tmp_path)
    with local_swarm(tmp_path, NODES) as nodes:
        for _ in range(LOOKS):  # until the client signs, and pays: its income is spent then
            complete(nodes["rich"], SHORT, 40)
            if account(tmp_path, "server", "server").contributed:
                break
            time.sleep(PERIOD_S)  # another process: there is nothing to wait for
        earned = account(tmp_path, "server", "server").contributed
        assert earned > 0, "the server was paid"
        with crowded(nodes["crowd"]):
            times: dict[str, list[float]] = {"rich": [], "poor": []}
            for _ in range(TRIES):
                for name, found in times.items():
                    found.append(complete(nodes[name], SHORT, 60))
        paid_s, free_s = (statistics.median(times[name]) for name in ("rich", "poor"))
        assert paid_s < 0.9 * free_s, times
    assert account(tmp_path, "server", "server").contributed > earned
    assert account(tmp_path, "server", "poor").contributed == account(tmp_path, "server", "crowd").contributed == 0
    assert account(tmp_path, "server", "rich").spendable < CREDITS
