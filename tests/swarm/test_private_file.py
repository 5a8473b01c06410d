"""Small private files: whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest

from shoal.swarm import private_file
from shoal.swarm.errors import OutOfMemory, UsageError


def test_a_file_is_replaced_whole_and_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert private_file.write(path, b"one")
    assert private_file.write(path, b"two")
    assert private_file.read(path) == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_is_none(tmp_path: Path) -> None:
    assert private_file.read(tmp_path / "nothing") is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_loses_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "file"
    private_file.write(path, b"old")

    def full(_: int) -> None:
        raise OSError(number, "no room")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfMemory, match="disk is full"):
        private_file.write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_a_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot create the folder"):
        private_file.write(tmp_path / "file" / "inside", b"x")


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    path.touch(0o600)
    os.truncate(path, 1 << 40)
    with pytest.raises(UsageError, match="too large"):
        private_file.read(path)


def test_a_named_pipe_does_not_count_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a plain file"):
        private_file.read(Path("/dev/null"))
