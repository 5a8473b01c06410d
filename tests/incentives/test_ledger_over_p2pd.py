"""The ledger's gossip between real daemons: entries, fork proofs, witnesses, and a backup that comes back."""

import shutil
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from incentives.chains import NOW_S, continued, opening
from incentives.ledger_group import clock, running_members, until

from shoal.incentives import entry as entries
from shoal.incentives.chain import Accepted, Refused, forger
from shoal.incentives.gossip_events import Forger
from shoal.swarm.errors import Unavailable

pytestmark = [pytest.mark.network, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def copy(folder: Path, database: str, to: Path) -> None:
    """With its write-ahead log, as a backup program does."""
    to.mkdir(exist_ok=True)
    for file in folder.glob(f"{database}*"):
        shutil.copy(file, to / file.name)


def move(folder: Path, database: str, to: Path) -> None:
    copy(folder, database, to)
    for file in folder.glob(f"{database}*"):
        file.unlink()


async def test_entries_and_a_fork_proof_reach_all_of_five_nodes(tmp_path: Path) -> None:
    async with running_members(tmp_path, range(1, 6)) as members:
        for member in members:
            with anyio.fail_after(60):
                await member.topic.until_it_may_sign()
        for number, member in enumerate(members):
            await member.append([opening(10 * number + each) for each in range(3)])
        await until(lambda: all(a.length(b) == 3 for a in members for b in members), "all chains at all nodes")

        forger_, *honest = members
        past = forger_.store.of(forger_.identity.public_key)
        branches = [continued(forger_.identity, past, 1, first, int(clock())) for first in (100, 200)]
        for victim, branch in zip(honest[:2], branches, strict=True):
            (verdict,) = await victim.ledger.receive(branch[-1:])
            assert isinstance(verdict, Accepted)
        key = forger_.identity.public_key
        await until(lambda: all(member.topic.is_forger(key) for member in honest), "the fork is known to all")
        for member in honest:
            (fact,) = [fact for fact in member.facts if isinstance(fact, Forger)]
            assert forger(fact.proof) == key  # any third party can check it
        await until(
            lambda: all(member.store.chain(key).forked for member in honest), "a FORKPROOF in everybody's ledger"
        )
        server = honest[-1]  # to whom neither branch was shown
        assert await server.ledger.receive(continued(forger_.identity, branches[0], 1, 300)[-1:]) == [Refused("forked")]
        assert server.ledger.is_forger(key)


async def test_a_node_that_was_away_hears_what_it_missed(tmp_path: Path) -> None:
    async with running_members(tmp_path, range(1, 4)) as members:
        for member in members:
            with anyio.fail_after(60):
                await member.topic.until_it_may_sign()
        await members[0].append([opening(each) for each in range(40)])
        await until(lambda: all(member.length(members[0]) == 40 for member in members), "the chain everywhere")
        key = members[0].identity.public_key
        fetched = await members[2].topic.fetch(members[0].peer, key, 3, 40)  # as for a session that waits
        assert fetched == members[0].store.of(key, 3)
    move(tmp_path, "3.sqlite", tmp_path / "lost")
    async with running_members(tmp_path, range(1, 4)) as members:
        await until(lambda: all(member.length(members[0]) == 40 for member in members), "the chain after the loss")


async def test_a_restored_backup_takes_its_own_entries_back_before_it_signs(tmp_path: Path) -> None:
    async with running_members(tmp_path, range(1, 5)) as members:
        mine = members[0]
        for member in members:
            with anyio.fail_after(60):
                await member.topic.until_it_may_sign()
        await mine.append([opening(1)])
        backup = tmp_path / "backup"
        copy(tmp_path, "1.sqlite", backup)
        await mine.append([opening(2), opening(3)])
        await until(lambda: any(member.length(mine) == 3 for member in members[1:]), "somebody has heard of it")
        signed = mine.store.of(mine.identity.public_key)
    move(tmp_path, "1.sqlite", tmp_path / "lost")
    copy(backup, "1.sqlite", tmp_path)
    async with running_members(tmp_path, range(1, 5)) as members:
        mine = members[0]
        with suppress(Unavailable):  # unless the others have told it already, on a machine that was slow to come here
            await mine.append([opening(4)])
        with anyio.fail_after(60):
            await mine.topic.until_it_may_sign()
        assert mine.store.of(mine.identity.public_key)[:3] == signed
        if mine.length(mine) == len(signed):
            await mine.append([opening(4)])
        await until(lambda: all(member.length(mine) == 4 for member in members), "it goes on where it was")
        assert not any(member.topic.is_forger(mine.identity.public_key) for member in members)


async def test_witnesses_sign_the_head_that_a_server_wants_to_see(tmp_path: Path) -> None:
    async with running_members(tmp_path, range(1, 7)) as members:
        for member in members:
            with anyio.fail_after(60):
                await member.topic.until_it_may_sign()
        client, server = members[0], members[1]
        (entry,) = await client.append([opening(1)])
        witnessed = await client.topic.witnessed_head()
        assert server.topic.head_problem(witnessed, entry) == ""
        other = entries.write(client.identity, 0, entries.NO_HASH, NOW_S, opening(2))
        assert server.topic.head_problem(witnessed, other)
