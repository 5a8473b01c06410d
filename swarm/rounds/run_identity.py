"""What makes two peers train the same run: the hash of all that they must agree on, or what differs."""

import hashlib
from collections.abc import Sequence
from typing import NewType

import msgspec

from shoal.swarm.transport import MAX_FRAME_BYTES

from .exchange import RunSpec
from .robust import ROBUST

RunId = NewType("RunId", str)  # hex sha256 of the canonical RunSpec, 64 characters
RunKey = NewType("RunKey", str)  # hex sha256 of the run's name: where its peers meet, whatever their settings
MAX_SHARDS = 4096
FEWEST, MOST_FINE, FINE_VALUES = 16, 256, 1 << 20  # of `usual_shards`
MAX_NAME_LENGTH = 64
DENSE_BITS = {"none": 32.0, "fp16": 16.0, "int8": 8.1, "fp4": 4.1}  # per value; the sparse ones stay below one
FRAME_SLACK_BYTES = 4096
_encoder = msgspec.msgpack.Encoder(order="deterministic")


def run_id(spec: RunSpec) -> RunId:
    return RunId(hashlib.sha256(b"shoal run 1\0" + _encoder.encode(spec)).hexdigest())


def run_key(name: str) -> RunKey:
    """Peers of one name meet under it, so that those with other settings can be told what differs."""
    return RunKey(hashlib.sha256(b"shoal run name 1\0" + name.encode()).hexdigest())


def differences(ours: RunSpec, theirs: RunSpec) -> str:
    """One line naming each field that differs, or an empty string."""
    one, other = msgspec.to_builtins(ours), msgspec.to_builtins(theirs)
    named = [
        f"{key} is {_short(one[key])} here and {_short(other[key])} there" for key in one if one[key] != other[key]
    ]
    return "; ".join(named)


def checked_spec(spec: RunSpec) -> RunSpec:
    """raises: ValueError with one line that says what to change"""
    if not 0 < len(spec.name) <= MAX_NAME_LENGTH or not spec.name.isprintable():
        raise ValueError(f"a run's name has 1 to {MAX_NAME_LENGTH} printable characters")
    if not spec.fragments or min(spec.fragments) < 1 or not 0 < spec.shards <= MAX_SHARDS:
        raise ValueError(f"a run of {len(spec.fragments)} fragments in {spec.shards} shards")
    if spec.quorum < 1 or not 0 <= spec.grace_s < float("inf") or not 0 < spec.deadline_s < float("inf"):
        raise ValueError("quorum, grace and deadline of a run are above zero and finite")
    if spec.robust not in ROBUST:
        raise ValueError(f"no robust mean {spec.robust!r}; there are {', '.join(ROBUST)}")
    spec.codec()
    largest = max(stop - start for f in range(len(spec.fragments)) for start, stop in spec.sharding(f).bounds())
    if largest * DENSE_BITS.get(spec.preset, 1.0) / 8 > MAX_FRAME_BYTES - FRAME_SLACK_BYTES:
        raise ValueError(f"a shard of {largest} values does not fit into a frame; take more than {spec.shards} shards")
    return spec


def usual_shards(fragments: Sequence[int], preset: str) -> int:
    """How many parts a run is reduced in unless it is told: the same at all peers.

    Owners differ by one part at most, so finer parts share the traffic more evenly however many peers there are; but
    each part costs its agreement about a kilobyte a peer and round. Large dense parts would not fit into a frame.
    """
    largest = max(fragments)
    framed = -(-largest * DENSE_BITS.get(preset, 1.0) // (8 * (MAX_FRAME_BYTES - FRAME_SLACK_BYTES)))
    fine = min(largest // FINE_VALUES, MOST_FINE)
    return min(MAX_SHARDS, max(FEWEST, fine, int(framed) + 1))


def largest_payload_bytes(values: int) -> int:
    """No codec writes more for a shard."""
    return min(4 * values + 4096, MAX_FRAME_BYTES - FRAME_SLACK_BYTES)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."
