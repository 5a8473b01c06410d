"""The name of the last run, used again: a node that comes back is called what the others know it by."""

from shoal.swarm import private_file
from shoal.swarm.errors import ShoalError, UsageError
from shoal.swarm.home import Home

FILE = "last_name"
MAX_NAME_LENGTH = 56  # "NAME's swarm" has to fit too


def is_name(text: str) -> bool:
    return text.isprintable() and len(text) <= MAX_NAME_LENGTH and bool(text.strip())


def last_name(home: Home) -> str | None:
    """None when there was no run."""
    try:
        name = (private_file.read(home.root / FILE) or b"").decode().removesuffix("\n")
    except (UsageError, UnicodeDecodeError):
        return None
    return name if is_name(name) else None


def remember_name(home: Home, name: str) -> None:
    if name == last_name(home):
        return
    try:
        private_file.write(home.root / FILE, f"{name}\n".encode())
    except ShoalError:
        return  # only a convenience
