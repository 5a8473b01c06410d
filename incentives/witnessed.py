"""A head that witnesses have seen: their signatures under the author, the length, the last hash and the root.

A witness signs one head for each length and only what continues the chain that it has seen, so that of two branches of
a fork at most one finds five of seven, as long as no more than two of them lie. Three can let both through (and are
themselves convicted by their two signatures, see `is_double_dealing`); then only the gossip is left.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity, verify

from .bodies import Checkpoint, Count, Hash, Key, Witness
from .entry import Entry, hash_of, peer_of
from .rendezvous import WITNESSES, quorum

DOMAIN = "ledger-witness"


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a witness signs: entries 0 .. count - 1 of the author, the last of them and all of them."""

    author: Key
    count: Count
    last: Hash
    root: Hash  # `entry_tree.Frontier.root`


class WitnessedHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    head: Head
    witnesses: Annotated[tuple[Witness, ...], Meta(max_length=WITNESSES)]


witnessed_codec = Canonical(WitnessedHead, "a witnessed head", 1024)  # seven signatures have about 830


def cosign(witness: Identity, head: Head) -> Witness:
    """Only `witness_duty.WitnessDuty` may call this: it knows what was signed before."""
    return Witness(witness.public_key, witness.sign(DOMAIN, _message(head)))


def is_cosigned(head: Head, witness: Witness) -> bool:
    try:
        return verify(peer_of(witness.key), DOMAIN, _message(head), witness.signature)
    except MalformedMessage:
        return False


def _message(head: Head) -> bytes:
    return head.author + head.count.to_bytes(4, "big") + head.last + head.root


def head_problem(witnessed: WitnessedHead, entry: Entry, appointed: Iterable[PeerId], needed: int | None = None) -> str:
    """Why an entry is not to be honoured on the strength of this head, or an empty string.

    entry: the last that the head speaks of
    appointed: the author's witnesses by our own view, `rendezvous.witnesses`
    needed: signatures; as many as `rendezvous.quorum` says
    """
    head = witnessed.head
    if head.author != entry.author or head.count != entry.seq + 1 or head.last != hash_of(entry):
        return "the witnessed head is of another entry"
    return _signatures_problem(head, witnessed.witnesses, appointed, needed)


def checkpoint_problem(entry: Entry, appointed: Iterable[PeerId], needed: int | None = None) -> str:
    """Why a CHECKPOINT proves nothing, or an empty string. It speaks of all entries before itself."""
    body = entry.body
    if not isinstance(body, Checkpoint):
        return "not a CHECKPOINT"
    if body.count != entry.seq:
        return "a CHECKPOINT speaks of all entries before it"
    head = Head(entry.author, body.count, entry.prev, body.root)
    return _signatures_problem(head, body.witnesses, appointed, needed)


def _signatures_problem(
    head: Head, witnesses: Iterable[Witness], appointed: Iterable[PeerId], needed: int | None
) -> str:
    appointed = set(appointed)
    wanted = quorum(len(appointed)) if needed is None else min(needed, len(appointed))
    signed: set[PeerId] = set()
    for witness in witnesses:
        try:
            peer = peer_of(witness.key)
        except MalformedMessage:
            continue
        if peer in appointed and peer not in signed and is_cosigned(head, witness):
            signed.add(peer)
    if len(signed) < wanted:
        return f"{len(signed)} of the author's witnesses signed this head, {wanted} have to"
    return ""


def is_double_dealing(one: Head, other: Head, witness: bytes, signatures: tuple[bytes, bytes]) -> bool:
    """Whether a witness signed two heads of one author and one length: no honest one does."""
    if (one.author, one.count) != (other.author, other.count) or one.last == other.last:
        return False
    pairs = zip((one, other), signatures, strict=True)
    return all(len(signature) == 64 and is_cosigned(head, Witness(witness, signature)) for head, signature in pairs)
