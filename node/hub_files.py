"""Files of one repository on a Hugging Face hub: what there is, a range of one, or a whole one that can be resumed.

Goes through huggingface_hub's own session, address and credentials, so HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from shoal.swarm.errors import OutOfMemory, Unavailable, UsageError
from shoal.swarm.manifest import FileEntry

Progress = Callable[[str, int, int], None]
TIMEOUT_S = 15.0
_AS_IT_IS = {"Accept-Encoding": "identity"}  # ranges and sizes are of the file itself
SPARE_BYTES = 16 << 20  # disk that a download leaves free


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str
    size_bytes: int
    sha256: str | None  # None: a small file kept in git, whose hash the hub does not publish


@dataclass(frozen=True, slots=True)
class HubFiles:
    repository: str
    commit: str
    files: dict[str, RemoteFile]

    @classmethod
    def look_up(cls, repository: str, revision: str) -> "HubFiles":
        """raises: UsageError (no such model, or not allowed), Unavailable (hub not reachable, or offline)"""
        with _hub_errors(repository):
            info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        files = {
            sibling.rfilename: RemoteFile(
                sibling.rfilename, sibling.size or 0, sibling.lfs.sha256 if sibling.lfs is not None else None
            )
            for sibling in info.siblings or ()
            if "/" not in sibling.rfilename and not sibling.rfilename.startswith(".")
        }
        return cls(repository, info.sha or revision, files)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file. raises: UsageError, Unavailable"""
        with _hub_errors(self.repository):
            headers = build_hf_headers() | _AS_IT_IS | {"Range": f"bytes={start}-{stop - 1}"}
            response = get_session().get(self._url(name), headers=headers, follow_redirects=True, timeout=TIMEOUT_S)
            hf_raise_for_status(response)
            content: bytes = response.content
        content = content if response.status_code == 206 else content[start:stop]
        if len(content) != stop - start:
            raise UsageError(f"{name} of {self.repository} is truncated on the hub")
        return content

    def download(self, entry: FileEntry, folder: Path, progress: Progress | None = None) -> None:
        """Bring one file, going on where an earlier attempt stopped; it appears under its name only when its hash is
        right.

        raises: Unavailable, OutOfMemory (disk full; what has come is kept), UsageError (the hub sent other bytes)
        """
        target, part = folder / entry.name, folder / (entry.name + ".part")
        with _disk_errors(entry, folder):
            folder.mkdir(parents=True, exist_ok=True)
            held = part.stat().st_size if part.is_file() else 0
            if held > entry.size_bytes:
                part.unlink()
                held = 0
            free = shutil.disk_usage(folder).free
            if entry.size_bytes - held + SPARE_BYTES > free:
                raise OutOfMemory(
                    f"{entry.name} of {self.repository} needs {(entry.size_bytes - held) >> 20} MiB on disk, "
                    f"{folder} has {free >> 20} MiB free"
                )
            if held < entry.size_bytes or not held:
                self._append(entry, part, held, progress)
            if file_sha256(part) != entry.sha256:
                part.unlink()
                raise UsageError(f"{entry.name} of {self.repository} did not arrive as the hub describes it; try again")
            part.replace(target)

    def _append(self, entry: FileEntry, part: Path, held: int, progress: Progress | None) -> None:
        headers = build_hf_headers() | _AS_IT_IS | ({"Range": f"bytes={held}-"} if held else {})
        with (
            _hub_errors(self.repository),
            get_session().stream(
                "GET", self._url(entry.name), headers=headers, follow_redirects=True, timeout=TIMEOUT_S
            ) as response,
        ):
            hf_raise_for_status(response)
            resumed = response.status_code == 206
            done = held if resumed else 0
            with part.open("ab" if resumed else "wb") as file:
                for block in response.iter_bytes():
                    done += len(block)
                    if done > entry.size_bytes:
                        raise UsageError(f"{entry.name} of {self.repository} is larger than the hub says")
                    file.write(block)
                    if progress:
                        progress(f"downloading {entry.name}", done, entry.size_bytes)
        if done != entry.size_bytes:
            raise Unavailable(f"the download of {entry.name} broke off after {done} of {entry.size_bytes} bytes")

    def _url(self, name: str) -> str:
        return str(hf_hub_url(self.repository, name, revision=self.commit))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _disk_errors(entry: FileEntry, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfMemory(
                f"the disk is full: {entry.name} needs {entry.size_bytes >> 20} MiB in {folder}"
            ) from error
        raise OutOfMemory(f"cannot write {entry.name} to {folder}: {error.strerror or error}") from error


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    try:
        yield
    except hub_errors.GatedRepoError as error:
        raise UsageError(f"{repository} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UsageError(f"there is no model {repository} on {constants.ENDPOINT}, or it is private") from error
    except (hub_errors.RevisionNotFoundError, hub_errors.EntryNotFoundError, hub_errors.HFValidationError) as error:
        raise UsageError(f"{repository}: {_first_line(error)}") from error
    except hub_errors.OfflineModeIsEnabled as error:
        raise Unavailable(f"{repository} is not here yet, and HF_HUB_OFFLINE forbids asking the hub") from error
    except hub_errors.HfHubHTTPError as error:
        raise Unavailable(f"the hub {constants.ENDPOINT} answered: {_first_line(error)}") from error
    except (UsageError, Unavailable, OutOfMemory):
        raise
    except Exception as error:
        # the HTTP library is the hub library's choice (requests, httpx, ...), so its errors have no name here
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
            errno.EIO,
            errno.EFBIG,
        ):
            raise
        raise Unavailable(
            f"the hub {constants.ENDPOINT} cannot be reached: {_first_line(error)}; "
            "a model's folder needs none, HF_ENDPOINT names another"
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
