"""Which model a node is to hold, when it may come from the swarm: by id, by name, or by need."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import anyio
import msgspec

from shoal.swarm.errors import ShoalError, UsageError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.records import Hosted, NodeRecord

from .weight_shelf import LIST_METHOD, MAX_GIVEN, MAX_LISTED_BYTES, Given

MAX_PEERS = 64  # asked what they give
AT_ONCE = 16
ASK_S = 5.0
_ID = re.compile(r"^[0-9a-f]{12,64}$")
_given = msgspec.msgpack.Decoder(list[Given])


def looks_like_id(model: str) -> bool:
    """Whether a user means a model of the swarm: its id, or at least the first 12 characters of it."""
    return bool(_ID.match(model)) and not Path(model).exists()


async def find_given(calls: MemberCalls, peers: Sequence[PeerId]) -> dict[Given, list[PeerId]]:
    """What the peers give away, and who gives it."""
    found: dict[Given, list[PeerId]] = {}
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def ask(peer: PeerId) -> None:
        async with limiter:
            try:
                data = await calls.call(peer, LIST_METHOD, b"", ASK_S)
                listed = _given.decode(data) if len(data) <= MAX_LISTED_BYTES else []
            except (ShoalError, msgspec.MsgspecError, ValueError):
                return
            for item in listed[:MAX_GIVEN]:
                found.setdefault(item, []).append(peer)

    async with anyio.create_task_group() as tasks:
        for peer in list(peers)[:MAX_PEERS]:
            tasks.start_soon(ask, peer)
    return found


def chosen(wanted: str, given: Iterable[Given], records: Iterable[NodeRecord]) -> ModelId | None:
    """The model of the swarm that a user means by an id, the beginning of one, or a name; None when there is none.

    raises: UsageError when several are meant
    """
    names = {(item.model, item.name) for item in given}
    names |= {(hosted.model, hosted.name) for record in records for hosted in record.hosted}
    by_id = looks_like_id(wanted)
    found = sorted({model for model, name in names if (model.startswith(wanted) if by_id else name == wanted)})
    if len(found) > 1:
        which = ", ".join(model[:16] for model in found[:4])
        raise UsageError(f"members have several models {wanted}; write the id of the one you mean: {which}")
    return ModelId(found[0]) if found else None


def most_needed(records: Iterable[NodeRecord], me: PeerId) -> ModelId | None:
    """The hosted model with the least-held unit; among equals the one that more peers hold, so that a swarm stays
    together. None when nobody hosts anything.
    """
    hosted: dict[ModelId, list[Hosted]] = {}
    for record in records:
        for item in record.hosted if record.peer != me else ():
            hosted.setdefault(item.model, []).append(item)

    def need(model: ModelId) -> tuple[int, int, str]:
        spans = [item.span for item in hosted[model]]
        units = range(hosted[model][0].layers + 2)
        fewest = min(sum(span.start <= unit < span.stop for span in spans) for unit in units)
        return fewest, -len(spans), model

    return min(hosted, key=need, default=None)
