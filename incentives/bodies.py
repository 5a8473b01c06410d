"""What an entry of a chain may say. Arrays of unsigned integers and bytes, one tag each; nothing else is on the wire.

Amounts are credits, whole numbers: one credit is one position through one million parameters. Times are unix seconds.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

KEY_BYTES = 32
HASH_BYTES = 32
WORD_BYTES = 16  # of a PayWord chain
SIGNATURE_BYTES = 64
TICK_TOKENS = 32  # positions that one tick pays
MAX_LIFETIME_S = 86_400  # of a reservation
MAX_ENTRY_BYTES = 4096

Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Word = Annotated[bytes, Meta(min_length=WORD_BYTES, max_length=WORD_BYTES)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Name = Annotated[bytes, Meta(min_length=1, max_length=32)]  # of a session or a run
Small = Annotated[int, Meta(ge=0, le=255)]
Count = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Large = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[int, Meta(ge=0, le=2**40)]
Ticks = Annotated[int, Meta(ge=0, le=2**20)]


COMPLAINTS = (
    "none",
    "it took the word for a replay and served nothing",
    "it answered with false numbers",
    "it broke off",
)


class Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of the bodies; each has a number as its tag."""


class Open(Body, frozen=True, tag=1):
    """A client reserves most_ticks * price for a session at one server."""

    server: Key
    session: Name
    root: Word  # w_0 of the PayWord chain
    price: Count  # credits for one tick; 0 in the free lane
    tick_tokens: Annotated[int, Meta(ge=1, le=4096)]
    most_ticks: Ticks
    lifetime_s: Annotated[int, Meta(ge=1, le=MAX_LIFETIME_S)]  # then the reservation is released
    lane: Small  # 0 free, 1 paid


class Close(Body, frozen=True, tag=2):
    """The server settles: `word` is `ticks` steps above the root of that OPEN."""

    open: Hash
    ticks: Ticks
    word: Word


class Ack(Body, frozen=True, tag=3):
    """The client's last word on a CLOSE; it moves nothing, but stands beside it for ever."""

    close: Hash
    complaint: Small  # see COMPLAINTS


class Train(Body, frozen=True, tag=4):
    """Work in one round of a training; worth nothing until a judge has looked at it."""

    run: Name
    round: Count
    tokens: Large
    update: Hash  # root over the payloads that were offered, as the round's roster holds it
    aggregate: Hash  # state of the outer parameters after the round
    statement: Hash  # of the `step_statement.StepStatement`: what can be taken again


class Verdict(Body, frozen=True, tag=5):
    """An auditor's judgement on somebody's work."""

    subject: Key
    kind: Small  # what was audited: 0 a chunk of a session, 1 an update of a training
    audited: Hash
    outcome: Small  # 0 sound, 1 false, 2 undecided
    evidence: Hash
    credits: Large = 0  # that the work is worth, found sound: verified tokens times quality, over the share looked at


class Witness(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    key: Key
    signature: Signature


class Checkpoint(Body, frozen=True, tag=6):
    """All entries of this author so far, under one root, with witnesses who have seen them."""

    root: Hash  # Merkle root over the hashes of entries 0 .. count - 1
    count: Count
    summary: Hash  # of the author's balance as he computes it
    witnesses: Annotated[tuple[Witness, ...], Meta(max_length=16)]


class Rotate(Body, frozen=True, tag=7):
    """The last entry under the old key: the account goes on under a new one, whose chain begins with this hash."""

    new_key: Key
    consent: Signature  # of the new key


class Branch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry without its body: enough to compute its hash and check the signature, and of one size always."""

    prev: Hash
    time: Seconds
    body: Hash  # see `entry.body_hash`
    signature: Signature


class ForkProof(Body, frozen=True, tag=8):
    """Two different entries that one author has signed for one place of its chain, in the order of their hashes."""

    author: Key
    seq: Count
    first: Branch
    second: Branch


AnyBody = Open | Close | Ack | Train | Verdict | Checkpoint | Rotate | ForkProof
