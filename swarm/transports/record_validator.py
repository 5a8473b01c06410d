"""What may stand in our part of the DHT: nothing but records and announcements signed by the peer that their
subkey names, and the owner's revocation lists.

hivemind asks a validator when a peer wants something stored and when a peer returns something found. Values are
self-contained (`records.SignedRecord`, `revocation.RevocationList`), so nothing is added on signing or stripped
on reading.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.members.revocation import MAX_LIST_BYTES, read_list
from shoal.swarm.prefixes.announcement import Announcement, AnnouncementQuota, read_announcement
from shoal.swarm.records import CLOCK_SLACK_S, MAX_RECORD_BYTES, NodeRecord, RecordReader

from . import dht_keys

REVOCATION_TTL_S = 3600.0
_ANNOUNCEMENT_HEAD = bytes([0x90 | len(Announcement.__struct_fields__)])  # msgpack, an array of so many
T = TypeVar("T", bytes, str, int)


class StoredRecord(Protocol):
    """hivemind's DHTRecord. Subkey and value are msgpack; an absent subkey is msgpack nil."""

    @property
    def key(self) -> bytes: ...
    @property
    def subkey(self) -> bytes: ...
    @property
    def value(self) -> bytes: ...
    @property
    def expiration_time(self) -> float: ...


class Clock(Protocol):
    def __call__(self) -> float: ...


class SwarmRecordValidator:
    """Stands in for hivemind's RecordValidatorBase, without importing hivemind.

    Keys that are not ours are refused: this DHT carries one swarm. A newer revocation list that passes by is learned,
    and every valid record goes to `learn`: what is stored at this node is known here before the next look-up.
    """

    priority = 10

    def __init__(
        self, reader: RecordReader, clock: Clock, learn: Callable[[bytes, float], object] | None = None
    ) -> None:
        self._reader = reader
        self._learn = learn
        self._clock = clock
        self._quota = AnnouncementQuota()
        self._swarm = reader.swarm
        self._id = reader.swarm.id
        self._revocation_key = dht_keys.key_id(dht_keys.revocation_key(self._id))

    def validate(self, record: StoredRecord) -> bool:
        try:
            self.check(record)
        except (MalformedMessage, Refused):
            return False
        return True

    def check(self, record: StoredRecord) -> None:
        """raises: MalformedMessage or Refused, with what is wrong"""
        if not (isinstance(record.value, bytes) and isinstance(record.subkey, bytes)):
            raise MalformedMessage("not bytes")  # a dictionary that a peer returned may hold anything
        if len(record.value) > MAX_LIST_BYTES + 8 or len(record.subkey) > 64:
            raise MalformedMessage("too large")
        if not isinstance(record.expiration_time, float) or not math.isfinite(record.expiration_time):
            raise MalformedMessage("it never expires")
        value = _plain(record.value, bytes)
        if record.key == self._revocation_key:
            self._check_revocations(record, value)
        elif self._is_announcement(value):
            self._check_announcement(record, value)
        else:
            self._check_node(record, value)

    def _is_announcement(self, value: bytes) -> bool:
        """An array of as many parts as one has; a signed record has two."""
        return value[:1] == _ANNOUNCEMENT_HEAD

    def _check_announcement(self, record: StoredRecord, value: bytes) -> None:
        now = self._clock()
        said = read_announcement(value, self._reader, now)
        if _plain(record.subkey, str) != said.peer:
            raise MalformedMessage("the subkey names another peer")
        if record.expiration_time != said.expires_at:
            raise MalformedMessage("it is stored for another time than its peer signed")
        if record.key != dht_keys.key_id(dht_keys.prefix_key(self._id, said.root)):
            raise MalformedMessage("the announcement does not belong under this key")
        self._quota.admit(said.peer, said.root, said.expires_at, now)

    def _check_node(self, record: StoredRecord, value: bytes) -> None:
        if len(value) > MAX_RECORD_BYTES:
            raise MalformedMessage("too large")
        now = self._clock()
        node = self._reader.read(value, now)
        if _plain(record.subkey, str) != node.peer:
            raise MalformedMessage("the subkey names another peer")
        if record.expiration_time != node.expires_at:
            raise MalformedMessage("it is stored for another time than its peer signed")
        if not self._belongs(record.key, node):
            raise MalformedMessage("the record does not belong under this key")
        if self._learn is not None:
            self._learn(value, now)

    def _belongs(self, key: bytes, node: NodeRecord) -> bool:
        if key == dht_keys.key_id(dht_keys.node_key(self._id, node.peer)):
            return True
        homes = [dht_keys.model_key(self._id, model, node.peer) for model in node.models]
        homes += [dht_keys.run_key(self._id, run, node.peer) for run in node.runs]
        return any(key == dht_keys.key_id(home) for home in homes)

    def _check_revocations(self, record: StoredRecord, value: bytes) -> None:
        if record.expiration_time > self._clock() + REVOCATION_TTL_S + CLOCK_SLACK_S:
            raise MalformedMessage("expires too far in the future")
        revocations = self._reader.revocations
        if value == revocations.encoded and value:
            version = revocations.version
        else:
            version = read_list(value, self._id, self._swarm.owner).version
        if _plain(record.subkey, int) != version:
            raise MalformedMessage("the subkey names another version")
        if version < revocations.version:
            raise Refused("an older revocation list")
        revocations.merge(value)

    def sign_value(self, record: StoredRecord) -> bytes:
        return record.value

    def strip_value(self, record: StoredRecord) -> bytes:
        return record.value

    def merge_with(self, other: Any) -> bool:
        return False


def _plain(data: bytes, kind: type[T]) -> T:
    """Unpack one msgpack value in its only encoding."""
    try:
        value = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedMessage(f"not msgpack of {kind.__name__}") from error
    if msgspec.msgpack.encode(value) != data:
        raise MalformedMessage("not in canonical form")
    return value
