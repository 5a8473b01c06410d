"""`swarm.json`: the swarm that this node belongs to, its certificate, and where the others were last seen."""

from pathlib import Path

import msgspec

from shoal.swarm import private_file
from shoal.swarm.errors import UsageError

from .membership import Swarm, swarm_problem


class Membership(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    swarm: Swarm
    certificate: bytes  # b"" in a public swarm and for the owner
    bootstrap: tuple[str, ...]  # multiaddrs with /p2p/
    revocations: bytes = b""  # the newest list known when the node last wrote this file


def load(path: Path) -> Membership | None:
    """None when there is no file.

    raises: UsageError when it is readable by others or damaged
    """
    data = private_file.read(path)
    return None if data is None else read(data, path)


def read(data: bytes, path: Path) -> Membership:
    """path: for the words of the error. raises: UsageError when it is damaged"""
    try:
        membership = msgspec.json.decode(data, type=Membership)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}); join the swarm again with a new invite") from error
    problem = swarm_problem(membership.swarm)
    if problem:
        raise UsageError(f"{path} is damaged ({problem}); join the swarm again with a new invite")
    return membership


def save(path: Path, membership: Membership) -> None:
    """raises: UsageError, OutOfMemory (disk full)"""
    private_file.write(path, msgspec.json.format(msgspec.json.encode(membership), indent=2) + b"\n")
