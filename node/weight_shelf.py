"""Weights that this node gives to its swarm: what it serves, what it has fetched, and what its owner published.

Only members get them: every question goes through the swarm's gate. The rate and the number of receivers at once are
bounded (`swarm.block_transfer_donor`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import anyio.to_thread
import msgspec
import structlog

from shoal.swarm.errors import ShoalError, UsageError
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.transfer.block_transfer_donor import DEFAULT_RATE_BYTE_S, BlockDonor, Bundle, OnThread, on_thread
from shoal.swarm.transfer.block_transfer_listing import BundleId
from shoal.swarm.transfer.weight_holdings import Holdings, serve_holdings

from .held_weights import HeldWeights, held_weights
from .model_source import LocalModel

log = structlog.get_logger(__name__)
LIST_METHOD = "/shoal/publications/2"
WEIGHTS_METHOD = "/shoal/weights/1"
MAX_GIVEN = 64
MAX_READERS = 8  # receivers of weights that are served at once
MAX_LISTED_BYTES = 64 << 10

Source = Literal["published", "hosted", "kept"]


class Given(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer says it can give."""

    model: ModelId
    name: str
    total_bytes: int  # of the weights
    held_bytes: int


@dataclass(frozen=True, slots=True)
class _Shelved:
    held: HeldWeights
    bundle: Bundle
    blobs: dict[str, bytes]
    holdings: Holdings


_listed = msgspec.msgpack.Encoder()


class WeightShelf:
    """The bundle of a model's weights is named by the model's id. rate_byte_s: None gives nothing away"""

    def __init__(self, rate_byte_s: float | None = DEFAULT_RATE_BYTE_S, thread: OnThread = on_thread) -> None:
        self._shelved: dict[tuple[ModelId, Source], _Shelved] = {}
        self._donor = (
            None if rate_byte_s is None else BlockDonor((self,), rate_byte_s, thread=thread, readers=MAX_READERS)
        )

    @property
    def gives(self) -> bool:
        return self._donor is not None

    @property
    def given_bytes(self) -> int:
        return 0 if self._donor is None else self._donor.served_bytes

    async def serve(self, calls: MemberCalls) -> None:
        if self._donor is not None:
            await self._donor.serve(calls, WEIGHTS_METHOD)
            await calls.answer(LIST_METHOD, self._answer)
            await serve_holdings(calls, self.holdings)

    async def put(self, local: LocalModel, source: Source) -> HeldWeights:
        """Look at what is here of a model, and give it away from now on. raises: UsageError when its files are gone"""

        def look() -> _Shelved:
            held = held_weights(local)
            return _Shelved(held, held.bundle(), held.blobs(), held.holdings())

        try:
            shelved = await anyio.to_thread.run_sync(look, abandon_on_cancel=True)
        except OSError as error:
            raise UsageError(f"the files of {local.manifest.name} cannot be read: {error.strerror or error}") from error
        self._shelved[local.model_id, source] = shelved
        return shelved.held

    async def offer(self, local: LocalModel, source: Source) -> None:
        """As `put`, where a failure only means that nothing is given."""
        try:
            await self.put(local, source)
        except ShoalError as error:
            log.warning("weights_not_given", model=local.manifest.name, reason=str(error))

    def drop(self, model: ModelId, source: Source) -> None:
        self._shelved.pop((model, source), None)

    def held(self) -> list[HeldWeights]:
        return [shelved.held for shelved in self._each()]

    def find(self, bundle: BundleId) -> Bundle | None:
        shelved = self._of(ModelId(bundle))
        return None if shelved is None else shelved.bundle

    def blobs(self, model: ModelId) -> dict[str, bytes] | None:
        shelved = self._of(model)
        return None if shelved is None else shelved.blobs

    def holdings(self, model: ModelId) -> Holdings | None:
        shelved = self._of(model)
        return None if shelved is None else shelved.holdings

    def _of(self, model: ModelId) -> _Shelved | None:
        every = [shelved for (each, _), shelved in self._shelved.items() if each == model]
        return max(every, key=lambda shelved: shelved.held.held_bytes, default=None)

    def _each(self) -> Iterable[_Shelved]:
        for model in dict.fromkeys(model for model, _ in self._shelved):
            shelved = self._of(model)
            if shelved is not None:
                yield shelved

    async def _answer(self, _: PeerId, __: bytes) -> bytes:
        listed = [
            Given(held.model, held.manifest.name[:200], held.total_bytes, held.held_bytes)
            for held in self.held()[:MAX_GIVEN]
            if held.files
        ]
        return _listed.encode(listed)
