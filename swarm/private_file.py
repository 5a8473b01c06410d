"""Small files that only their owner may read: written whole or not at all.

Mode 0600 in folders of mode 0700. A file that group or others can read is refused, because a key in it may be known.
"""

import errno
import os
import secrets
import stat
from pathlib import Path

from .errors import OutOfMemory, ShoalError, UsageError

MAX_FILE_BYTES = 1 << 20


def make_folder(path: Path) -> None:
    """Create with mode 0700; an existing folder stays as it is.

    raises: UsageError when it cannot be made
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create the folder {path}: {error.strerror}") from error


def write(path: Path, data: bytes, *, replace: bool = True) -> bool:
    """Write atomically, synced to disk.

    replace: False leaves an existing file alone
    returns: False when the file existed and `replace` is False
    raises: OutOfMemory when the disk is full; UsageError when the folder cannot be written
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            partial.replace(path)
        else:
            os.link(partial, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return True


def cannot_write(path: Path, error: OSError) -> ShoalError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfMemory(f"the disk is full: cannot write {path}")
    return UsageError(f"cannot write {path}: {error.strerror}")


def read(path: Path) -> bytes | None:
    """The content, or None when there is no such file.

    raises: UsageError when group or others can read it, when it is not a plain file, or is too large
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is not a plain file")
            if status.st_mode & 0o077:
                raise UsageError(f"{path} can be read by other users of this machine; run: chmod 600 {path}")
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is too large for what it should hold")
    return data
