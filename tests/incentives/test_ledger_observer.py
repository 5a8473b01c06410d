"""An observer checks what it hears by itself; and, with py-libp2p, hears it from the nodes' own daemons."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from incentives.chains import NOW_S, chain_of, continued, opening
from incentives.ledger_group import SWARM, clock, running_members
from swarm.people import person

from shoal.incentives import entry as entries
from shoal.incentives.bodies import ForkProof
from shoal.incentives.chain import forger, fork_proof
from shoal.incentives.entry import Entry, peer_of
from shoal.incentives.gossip_messages import News, news
from shoal.incentives.ledger_observer import ForkSeen, LedgerObserver, Observation, Signed, Unsound
from shoal.swarm.identity import Identity
from shoal.swarm.topic_envelope import seal

AUTHOR, ONE, OTHER = person(1), person(2), person(3)
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "observe_ledger.py"
# py-libp2p wants an older protobuf than the daemon's library, so it lives in an environment of its own
PYTHON = os.environ.get("SHOAL_LIGHT_PYTHON") or (sys.executable if find_spec("libp2p") else "")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def hear(observer: LedgerObserver, sender: Identity, *several: Entry) -> list[Observation]:
    body = news.encode(News(tuple(entries.encode(entry) for entry in several)))
    return observer.heard(sender.peer_id, seal(sender, observer.topic, body), 0.0)


def test_an_observer_finds_a_fork_by_itself_wherever_the_branches_begin() -> None:
    observer = LedgerObserver(SWARM.id)
    past = chain_of(AUTHOR, 5)
    one, other = continued(AUTHOR, past, 1, 10)[-1], continued(AUTHOR, past, 1, 20)[-1]
    assert hear(observer, ONE, one) == [Signed(one)]
    assert hear(observer, ONE, one) == []
    (seen,) = hear(observer, OTHER, other)
    assert isinstance(seen, ForkSeen)
    assert not seen.told
    assert forger(seen.proof) == AUTHOR.public_key


def test_an_observer_checks_the_proofs_of_others() -> None:
    past = chain_of(AUTHOR, 1)
    proof = entries.write(ONE, 0, entries.NO_HASH, NOW_S, fork_of(past))
    seen = hear(LedgerObserver(SWARM.id), ONE, proof)
    assert isinstance(seen[1], ForkSeen)
    assert seen[1].told
    sound = fork_of(past)
    worthless = ForkProof(sound.author, sound.seq, sound.second, sound.first)
    entry = entries.write(ONE, 0, entries.NO_HASH, NOW_S, worthless)
    seen = hear(LedgerObserver(SWARM.id), ONE, entry)
    assert isinstance(seen[1], Unsound)


def fork_of(past: list[Entry]) -> ForkProof:
    return fork_proof(continued(AUTHOR, past, 1, 10)[-1], continued(AUTHOR, past, 1, 20)[-1])


def test_an_observer_names_who_publishes_what_is_not_signed() -> None:
    (entry,) = chain_of(AUTHOR, 1)
    unsigned = entries.Entry(entry.author, entry.seq, entry.prev, entry.time, entry.body, bytes(64))
    (seen,) = hear(LedgerObserver(SWARM.id), ONE, unsigned)
    assert isinstance(seen, Unsound)
    assert seen.origin == ONE.peer_id


@given(st.binary(max_size=300))
def test_any_bytes_are_observed_without_a_crash(data: bytes) -> None:
    (seen,) = LedgerObserver(SWARM.id).heard(ONE.peer_id, data, 0.0)
    assert isinstance(seen, Unsound)


@pytest.mark.network
@pytest.mark.anyio
@pytest.mark.skipif(
    not PYTHON,
    reason="needs SHOAL_LIGHT_PYTHON, a Python with py-libp2p: pip install 'libp2p>=0.8' and base58, msgspec",
)
async def test_an_observer_without_the_daemon_hears_the_nodes_and_finds_their_fork(tmp_path: Path) -> None:
    async with running_members(tmp_path, range(1, 4)) as members:
        addresses = [f"{address}/p2p/{member.peer}" for member in members for address in member.addresses]
        command = [PYTHON, str(SCRIPT), "--swarm", SWARM.id, *addresses]
        paths = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        async with await anyio.open_process(command, stdin=None, stderr=None, env=paths) as process:
            events: list[dict[str, object]] = []
            changed = anyio.Event()

            async def read() -> None:
                nonlocal changed
                assert process.stdout is not None
                rest = b""
                async for chunk in process.stdout:
                    *lines, rest = (rest + chunk).split(b"\n")
                    events.extend(json.loads(text) for text in lines)
                    changed.set()
                    changed = anyio.Event()

            async def until_event(name: str, author: str | None = None) -> dict[str, object]:
                with anyio.fail_after(60):
                    while True:
                        for event in events:
                            if event["event"] == name and author in (None, event.get("author")):
                                return event
                        await changed.wait()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await until_event("listening")
                forger_, one, other = members
                for member in members:
                    await member.topic.until_it_may_sign()
                await anyio.sleep(2)  # until the mesh has taken the observer in: a heartbeat of either implementation
                await one.append([opening(5)])
                assert (await until_event("entry", one.peer))["kind"] == "open"
                for victim, first in ((one, 100), (other, 200)):
                    (entry,) = continued(forger_.identity, [], 1, first, int(clock()))
                    await victim.ledger.receive([entry])
                await until_event("fork", peer_of(forger_.identity.public_key))
                assert not [event for event in events if event["event"] == "unsound"]
                process.terminate()
                await process.wait()
                tasks.cancel_scope.cancel()
