"""What a node says about itself in the DHT: signed by its own key, small, short-lived.

A record is self-contained (body and signature), so any peer may hand it on: a thin client without a DHT asks
one peer for all records it holds, checks each signature, and at worst is told too little.
"""

import math
from collections import OrderedDict

import msgspec

from .canonical import Canonical
from .errors import MalformedMessage, Refused
from .identifiers import ModelId, PeerId, SwarmId
from .identity import Identity, verify
from .members.membership import Swarm, check_certificate
from .members.revocation import Revocations
from .peer_id import is_peer_id
from .units import Span

RECORD_TTL_S = 24.0  # a peer killed with -9 is out of every listing after this long
CLOCK_SLACK_S = 3.0  # how far clocks may differ; a record may outlive its time to live by this much
ANNOUNCE_PERIOD_S = 8.0
MAX_RECORD_BYTES = 4096  # with signature
MAX_ADDRESSES = 12
MAX_ADDRESS_LENGTH = 256
MAX_HOSTED = 8
MAX_RUNS = 4
MAX_NEIGHBOURS = 8
MAX_NAME_LENGTH = 64
MAX_LAYERS = 4096
DOMAIN = "record"
_MAX_REMEMBERED = 16384


class Hosted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A span of one model, ready to serve."""

    model: ModelId
    name: str  # the manifest's display name
    layers: int  # decoder layers of the whole model
    span: Span
    dtype: str  # of the arithmetic; sessions stay within one dtype
    step_ms: float  # measured time of one decode step over the whole span
    queue: int  # sessions that are open now
    free_tokens: int  # KV room left, in tokens
    max_context: int
    device: str = "cpu"  # its kind: audits compare numbers within one
    prefill_ms: float = 0.0  # measured time of a position among many of a prompt, over the whole span; 0: not measured
    kv_bytes: int = 0  # of the cache of a position, over the whole span; 0: nobody has computed anything yet


class Coming(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a node is about to hold of a model, in the place of what it holds of it now."""

    model: ModelId
    name: str  # the manifest's display name
    layers: int  # decoder layers of the whole model
    span: Span
    dtype: str
    settled: bool = False  # it is on its way; else it waits for those who claim the same


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    peer: PeerId
    swarm: SwarmId
    name: str
    version: str  # of the shoal package
    protocol: int
    addresses: tuple[str, ...]  # multiaddrs without the /p2p/ part
    hosted: tuple[Hosted, ...]
    rtt_ms: dict[PeerId, float]  # measured round trips to up to 8 other peers
    started_at: float  # unix seconds
    expires_at: float  # unix seconds
    certificate: bytes = b""  # membership, in private swarms
    withdrawn: bool = False  # the node has left; the record only takes the place of the one before
    link_byte_s: float = 0.0  # the most that this node has seen of its link lately, each way; 0: not measured
    runs: tuple[str, ...] = ()  # keys of the training runs it takes part in, `rounds.run_identity.run_key`
    coming: tuple[Coming, ...] = ()  # while it changes its layers

    @property
    def models(self) -> list[ModelId]:
        """Under whose keys it is stored."""
        return sorted({held.model for held in self.hosted} | {coming.model for coming in self.coming})


class SignedRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    body: bytes  # msgpack of NodeRecord
    signature: bytes  # ed25519 by body.peer over DOMAIN + body


_bodies = Canonical(NodeRecord, "a node record", MAX_RECORD_BYTES)
_signed = Canonical(SignedRecord, "a signed record", MAX_RECORD_BYTES)


def sign_record(identity: Identity, record: NodeRecord) -> bytes:
    """raises: ValueError when the record breaks a limit (a bug of the caller, or a name that is too long)"""
    problem = record_problem(record)
    if not problem and record.peer != identity.peer_id:
        problem = "a record is signed by the peer it speaks of"
    body = _bodies.encode(record)
    data = _signed.encode(SignedRecord(body, identity.sign(DOMAIN, body)))
    if problem or len(data) > MAX_RECORD_BYTES:
        raise ValueError(problem or f"the record has {len(data)} bytes, at most {MAX_RECORD_BYTES} may travel")
    return data


def record_problem(record: NodeRecord) -> str:
    """The first limit that a record breaks, or an empty string."""
    if not is_peer_id(record.peer):
        return "a record's peer is an ed25519 PeerID"
    if not 0 < len(record.name) <= MAX_NAME_LENGTH or not record.name.isprintable():
        return f"a node's name has 1 to {MAX_NAME_LENGTH} printable characters"
    if len(record.version) > MAX_NAME_LENGTH or not record.version.isprintable():
        return "a node's version is not printable or too long"
    if not 0 <= record.protocol < 1 << 16:
        return "a protocol version is out of range"
    if len(record.addresses) > MAX_ADDRESSES:
        return f"a record has at most {MAX_ADDRESSES} addresses"
    for address in record.addresses:
        if not address.startswith("/") or len(address) > MAX_ADDRESS_LENGTH or not address.isprintable():
            return "an address is not a multiaddr"
    if len(record.hosted) > MAX_HOSTED:
        return f"a record has at most {MAX_HOSTED} hosted spans"
    if len(record.coming) > MAX_HOSTED:
        return f"a record has at most {MAX_HOSTED} spans to come"
    if len(record.rtt_ms) > MAX_NEIGHBOURS:
        return f"a record has at most {MAX_NEIGHBOURS} round trips"
    if len(record.runs) > MAX_RUNS or any(len(key) != 64 or not key.isalnum() for key in record.runs):
        return f"a record names at most {MAX_RUNS} runs, each by 64 hexadecimal characters"
    for rtt_ms in record.rtt_ms.values():
        if not 0 <= rtt_ms < math.inf:
            return "a round trip is not a time"
    if not 0 <= record.link_byte_s < math.inf:
        return "a speed is not a speed"
    if not (math.isfinite(record.started_at) and math.isfinite(record.expires_at)):
        return "a record's times are not finite"
    problems = (*map(_hosted_problem, record.hosted), *map(_part_problem, record.coming))
    return next(filter(None, problems), "")


def _part_problem(part: Hosted | Coming) -> str:
    if len(part.model) != 64 or not part.model.isalnum():
        return "a model id has 64 hexadecimal characters"
    if not part.name.isprintable() or not part.dtype.isprintable() or len(part.dtype) > 16:
        return "a model's name or dtype is not printable or too long"
    if not 0 <= part.layers <= MAX_LAYERS or part.span.stop > part.layers + 2:
        return "a span lies outside its model"
    return ""


def _hosted_problem(hosted: Hosted) -> str:
    problem = _part_problem(hosted)
    if problem:
        return problem
    if len(hosted.device) > 16:
        return "the name of a device is too long"
    if not (0 <= hosted.step_ms < math.inf and 0 <= hosted.prefill_ms < math.inf):
        return "a step time is not a time"
    if min(hosted.kv_bytes, hosted.queue, hosted.free_tokens, hosted.max_context) < 0:
        return "a count is negative"
    return ""


class RecordReader:
    """Turns any bytes into a valid record of one swarm, or raises. Checked signatures are remembered.

    What does not change about given bytes (form, limits, signatures, swarm) is checked once; time and
    revocation each time.
    """

    def __init__(self, swarm: Swarm, revocations: Revocations) -> None:
        self.swarm = swarm
        self.revocations = revocations
        self._id = swarm.id
        self._known: OrderedDict[bytes, NodeRecord] = OrderedDict()

    def read(self, data: bytes, now: float) -> NodeRecord:
        """The record, live or a little past its time.

        raises: MalformedMessage (form, limits, signature, swarm, lifetime); Refused (not a member)
        """
        record = self._known.get(data)
        if record is None:
            record = self._check(data)
            self._remember(data, record)
        if record.expires_at > now + RECORD_TTL_S + CLOCK_SLACK_S:
            raise MalformedMessage("a record that expires too far in the future")
        reason = check_certificate(record.certificate, self.swarm, record.peer, now, self.revocations)
        if reason:
            raise Refused(reason)
        return record

    def _check(self, data: bytes) -> NodeRecord:
        signed = _signed.decode(data)
        record = _bodies.decode(signed.body)
        problem = record_problem(record)
        if problem:
            raise MalformedMessage(problem)
        if record.swarm != self._id:
            raise MalformedMessage("a record of another swarm")
        if not verify(record.peer, DOMAIN, signed.body, signed.signature):
            raise MalformedMessage("a record that its peer did not sign")
        return record

    def _remember(self, data: bytes, record: NodeRecord) -> None:
        self._known[data] = record
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)
