"""What a joiner asks of the peers of a run, and what they can give: checkpoints, and the rounds since."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage, Refused
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.transfer.block_transfer_listing import BundleId

from .delta_entry import STATE_BYTES, DeltaEntry
from .delta_log import DeltaLog

METHOD = "/shoal/catch-up/1"
MAX_CHECKPOINTS = 2  # offered at once, the newest
MAX_DELTAS = 192  # offered from one state on; a joiner asks again when it has replayed those
_MAX_BYTES = 240 << 10


class CatchUpQuery(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    run: str
    state: bytes  # the joiner's own; it may lead on from there without a checkpoint


class CheckpointOffer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    bundle: BundleId
    round: int  # of its last outcome
    state: bytes
    total_bytes: int


class DeltaOffer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    bundle: BundleId
    round: int
    before: bytes
    after: bytes
    total_bytes: int


class CatchUpOffer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    state: bytes  # where this peer stands
    next_round: int  # the round that it takes part in next
    checkpoints: tuple[CheckpointOffer, ...]
    deltas: tuple[DeltaOffer, ...]


QUERIES = Canonical(CatchUpQuery, "a question of a joiner", 4096)
OFFERS = Canonical(CatchUpOffer, "an offer to a joiner", _MAX_BYTES)


def read_offer(data: bytes) -> CatchUpOffer:
    """raises: MalformedMessage, whatever the bytes are"""
    offer = OFFERS.decode(data)
    states = [offer.state, *(c.state for c in offer.checkpoints)]
    states += [state for delta in offer.deltas for state in (delta.before, delta.after)]
    sizes = [c.total_bytes for c in offer.checkpoints] + [delta.total_bytes for delta in offer.deltas]
    rounds = [offer.next_round, *(delta.round for delta in offer.deltas)]
    if any(len(state) != STATE_BYTES for state in states) or min([0, *sizes, *rounds]) < 0:
        raise MalformedMessage("an offer with impossible states, sizes or rounds")
    return offer


def offered_deltas(log: DeltaLog, states: Iterable[bytes]) -> tuple[DeltaOffer, ...]:
    """The next entries from each of these states on, each once, in the order of the log."""
    wanted: dict[BundleId, DeltaEntry] = {}
    for state in states:
        for count, entry in enumerate(log.since(state)):
            if count == MAX_DELTAS:
                break
            wanted[entry.bundle] = entry
    return tuple(
        DeltaOffer(e.bundle, e.round, e.about.before, e.about.after, e.total_bytes)
        for e in sorted(wanted.values(), key=lambda entry: entry.round)
    )


async def serve_catch_up(
    calls: MemberCalls,
    run: str,
    standing: Callable[[], tuple[bytes, int]],
    checkpoints: Callable[[], Sequence[CheckpointOffer]],
    log: DeltaLog,
) -> None:
    """Answer joiners; the bytes themselves come from a `BlockDonor` whose shelves hold the same bundles.

    standing: the outer state's hash and the next round; checkpoints: newest first
    """

    async def answer(_: PeerId, body: bytes) -> bytes:
        query = QUERIES.decode(body)
        if query.run != run:
            raise Refused("this peer trains in another run")
        state, next_round = standing()
        newest = tuple(checkpoints())[:MAX_CHECKPOINTS]
        deltas = offered_deltas(log, [query.state, *(offer.state for offer in newest)])
        return OFFERS.encode(CatchUpOffer(state, next_round, newest, deltas))

    await calls.answer(METHOD, answer)
