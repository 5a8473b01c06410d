"""The data folder of one node and the files in it."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from . import private_file
from .errors import UsageError

STARTS_KEPT = 16


class NodeFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a running node tells the commands beside it (`node.json`)."""

    pid: int
    name: str
    api: str  # http://127.0.0.1:8000, "" when it is gone: the node is stopping
    p2p: tuple[str, ...]  # multiaddrs with /p2p/
    started: float  # unix seconds; also `started_at` in the node's records


@dataclass(frozen=True, slots=True)
class Home:
    root: Path

    @classmethod
    def find(cls, flag: Path | None = None, environment: Mapping[str, str] | None = None) -> "Home":
        """--home, else SHOAL_HOME, else the user's data folder for shoal."""
        named = (os.environ if environment is None else environment).get("SHOAL_HOME")
        root = flag or (Path(named) if named else Path(platformdirs.user_data_dir("shoal", appauthor=False)))
        return cls(Path(os.path.expanduser(root)).absolute())  # noqa: PTH111  --home ~nobody is no error

    @property
    def identity(self) -> Path:
        return self.root / "identity.key"

    @property
    def swarm(self) -> Path:
        return self.root / "swarm.json"

    @property
    def api_key_file(self) -> Path:
        return self.root / "api.key"

    @property
    def lock(self) -> Path:
        return self.root / "node.lock"

    @property
    def node(self) -> Path:
        return self.root / "node.json"

    @property
    def starts(self) -> Path:
        return self.root / "starts.json"

    @property
    def invites(self) -> Path:
        return self.root / "invites.sqlite"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def witness(self) -> Path:
        """What this node has signed as a witness of others' chains."""
        return self.root / "witness.sqlite"

    @property
    def audits(self) -> Path:
        """What this node has found out about others by auditing them."""
        return self.root / "audits.sqlite"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def kv(self) -> Path:
        """Chunks of KV caches that outlive their session."""
        return self.root / "kv"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def prepare(self) -> None:
        """raises: UsageError when a folder cannot be made"""
        for folder in (self.root, self.cache, self.logs):
            private_file.make_folder(folder)

    def api_key(self) -> str:
        """The key of the HTTP API, created on first use.

        raises: UsageError when the file is readable by others or is empty
        """
        data = private_file.read(self.api_key_file)
        if data is None:
            private_file.write(self.api_key_file, f"{secrets.token_urlsafe(32)}\n".encode(), replace=False)
            data = private_file.read(self.api_key_file) or b""
        try:
            key = data.decode("ascii").strip()
        except UnicodeDecodeError:
            key = ""
        if len(key) < 16 or not key.isprintable():
            raise UsageError(f"{self.api_key_file} holds no API key; remove it to get a new one")
        return key

    def write_facts(self, facts: NodeFacts) -> None:
        private_file.write(self.node, msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")

    def note_start(self, started: float) -> frozenset[float]:
        """Remember when this run began (unix seconds); returns when the last ones did.

        Their records may outlive them in the DHT: after a kill -9, or where a withdrawal did not arrive.
        """
        data = private_file.read(self.starts)
        try:
            earlier = msgspec.json.decode(data or b"[]", type=list[float])
        except (msgspec.MsgspecError, ValueError):
            earlier = []
        private_file.write(self.starts, msgspec.json.encode([*earlier[1 - STARTS_KEPT :], started]))
        return frozenset(earlier)

    def facts_of(self, pid: int) -> NodeFacts | None:
        """What the node with this pid wrote; what another one left behind is nothing."""
        facts = self.read_facts()
        return facts if facts is not None and facts.pid == pid else None

    def forget_facts(self, pid: int) -> None:
        """The node with this pid is gone."""
        if self.facts_of(pid) is not None:
            self.node.unlink(missing_ok=True)

    def read_facts(self) -> NodeFacts | None:
        """What the last node wrote, running or not; None when there is none or it cannot be read."""
        data = private_file.read(self.node)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=NodeFacts)
        except (msgspec.MsgspecError, ValueError):
            return None
