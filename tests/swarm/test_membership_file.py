"""swarm.json."""

import stat
from pathlib import Path

import pytest
from swarm.people import certificate, person, private_swarm

from shoal.swarm.errors import UsageError
from shoal.swarm.members import membership_file
from shoal.swarm.members.membership_file import Membership

SWARM = private_swarm()


def test_a_membership_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "swarm.json"
    assert membership_file.load(path) is None
    membership = Membership(SWARM, certificate(SWARM, person(1)), ("/ip4/1.2.3.4/tcp/1/p2p/x",), b"\x01\xff")
    membership_file.save(path, membership)
    assert membership_file.load(path) == membership
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"swarm": ["", "x", "", false]}'])
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "swarm.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="damaged"):
        membership_file.load(path)
    assert path.read_bytes() == content
