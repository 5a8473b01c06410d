"""Entering a swarm with an invite when the home remembers something already."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from swarm.people import NOW, OWNER, certificate, person, private_swarm

from shoal.swarm.errors import Refused, UsageError
from shoal.swarm.home import Home
from shoal.swarm.members import membership_file
from shoal.swarm.members.invite import read_invite
from shoal.swarm.members.invite_store import InviteStore
from shoal.swarm.members.joining import serve_joining
from shoal.swarm.members.membership import found_swarm, read_certificate
from shoal.swarm.members.membership_file import Membership
from shoal.swarm.members.swarm_entry import enter, join
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_transport import MemoryTransport

SWARM = private_swarm()
ME = person(1)
AT_OWNER = (f"/memory/owner/p2p/{OWNER.peer_id}",)


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@asynccontextmanager
async def owner_and_me(folder: Path) -> AsyncIterator[tuple[InviteStore, MemoryTransport]]:
    store = InviteStore(folder / "invites.sqlite", OWNER, SWARM)
    async with MemoryNetwork(0) as network:
        owner = network.join(OWNER.peer_id)
        await serve_joining(owner, lambda peer, body: store.answer(peer, body, NOW))
        yield store, network.join(ME.peer_id)
    store.close()


@pytest.mark.anyio
async def test_an_invite_to_the_swarm_of_this_home_is_not_used_up(home: Home, tmp_path: Path) -> None:
    async with owner_and_me(tmp_path) as (store, me):
        first = await join(home, me, read_invite(store.create(AT_OWNER, NOW), NOW), "ben", NOW)
        spare = read_invite(store.create(AT_OWNER, NOW), NOW)
        assert await join(home, me, spare, "ben", NOW) == first
        assert [entry.state for entry in store.invites(NOW)].count("open") == 1


@pytest.mark.anyio
async def test_a_member_whose_certificate_has_run_out_comes_back_with_a_new_invite(home: Home, tmp_path: Path) -> None:
    old = Membership(SWARM, certificate(SWARM, ME, NOW - 100.0, ttl_s=50.0), AT_OWNER)
    membership_file.save(home.swarm, old)
    async with owner_and_me(tmp_path) as (store, me):
        with pytest.raises(Refused, match="new invite"):
            enter(old, me, lambda: NOW)
        await join(home, me, read_invite(store.create(AT_OWNER, NOW), NOW), "ben", NOW)
        kept = membership_file.load(home.swarm)
        assert kept is not None
        assert read_certificate(kept.certificate).expires_at > NOW
        enter(kept, me, lambda: NOW)


@pytest.mark.anyio
async def test_a_damaged_memory_is_replaced_by_a_good_invite_and_kept_aside(home: Home, tmp_path: Path) -> None:
    home.prepare()
    home.swarm.touch(mode=0o600)
    home.swarm.write_bytes(b"{ torn")
    async with owner_and_me(tmp_path) as (store, me):
        with pytest.raises(UsageError, match="new invite"):
            membership_file.load(home.swarm)
        used = store.create(AT_OWNER, NOW)
        store.revoke_invite(read_invite(used, NOW).id, NOW)
        with pytest.raises(Refused):
            await join(home, me, read_invite(used, NOW), "ben", NOW)
        assert home.swarm.read_bytes() == b"{ torn", "an invite that does not let us in changes nothing"
        await join(home, me, read_invite(store.create(AT_OWNER, NOW), NOW), "ben", NOW)
    assert membership_file.load(home.swarm) is not None
    assert (home.root / "swarm.json.damaged").read_bytes() == b"{ torn"


@pytest.mark.anyio
async def test_a_swarm_that_this_home_owns_is_not_given_up_by_accident(home: Home, tmp_path: Path) -> None:
    membership_file.save(home.swarm, Membership(found_swarm("mine", ME.peer_id, b"1" * 16), b"", ()))
    async with owner_and_me(tmp_path) as (store, me):
        invite = read_invite(store.create(AT_OWNER, NOW), NOW)
        with pytest.raises(UsageError, match=r"owns the swarm mine.*--home.*swarm\.json"):
            await join(home, me, invite, "ben", NOW)
        assert [entry.state for entry in store.invites(NOW)] == ["open"]
