"""A node whose disk is full cannot remember its neighbours, and serves on."""

from pathlib import Path

import anyio
import pytest
from node.families.three_nodes import running_nodes

from shoal.swarm.errors import OutOfMemory
from shoal.swarm.members import membership_file
from shoal.swarm.members.membership_file import Membership

pytestmark = [pytest.mark.network, pytest.mark.timeout(120)]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.mark.anyio
async def test_a_full_disk_ends_no_node_and_the_next_look_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = membership_file.save
    full: set[Path] = set()

    def save_if_there_is_room(path: Path, membership: Membership) -> None:
        if path in full:
            raise OutOfMemory(f"the disk is full: cannot write {path}")
        save(path, membership)

    monkeypatch.setattr(membership_file, "save", save_if_there_is_room)
    async with running_nodes(tmp_path) as running:
        first = await running.start(None)
        file = first.options.home.swarm
        full.add(file)
        second = await running.start(None)
        with anyio.fail_after(30):
            while len(await first.loops.look()) < 2:  # noqa: ASYNC110  a look-up has no hook to wait for
                await anyio.sleep(0.1)
        assert not first.stop.is_set()
        known = membership_file.load(file)
        assert known is not None
        assert known.bootstrap == ()
        full.clear()
        await first.loops.look()
        known = membership_file.load(file)
        assert known is not None
        assert any(second.transport.me in address for address in known.bootstrap)
