"""The planner of a driver: looks the swarm up, measures what it does not know yet, and has `routing` choose."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from shoal.compression.kv_levels import CHUNK_TOKENS
from shoal.swarm.directory import Lookup
from shoal.swarm.errors import ModelNotServable, OutOfMemory
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import Manifest
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.records import NodeRecord
from shoal.swarm.sessions.generation import ServedModel, TokenRequest
from shoal.swarm.sessions.session_events import Plan
from shoal.swarm.transfer import blobs
from shoal.swarm.units import Span, describe, missing, whole

from . import chain_choice as routing
from .chain_plan import ChainPlan, PlannedHop, PrefillPlan
from .pings import Pinger
from .prefill_choice import PrefillChoice, choose_prefill
from .standing import KnownStanding, Neutral

FIRST_PING_S = 0.7  # a peer that is slower than this to answer is planned for with a guess
BLAME_S = 60.0  # a peer that failed a session is avoided for this long
BLAME_MS = 2000.0  # by pretending that it is this much slower


class DirectoryPlanner:
    """`chain_plan.ChainPlanner` over a directory. clock: monotonic seconds; wall_clock: unix seconds, as in records."""

    def __init__(
        self,
        lookup: Lookup,
        calls: MemberCalls,
        pinger: Pinger,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        standing: KnownStanding | None = None,
    ) -> None:
        self._lookup = lookup
        self.standing: KnownStanding = standing or Neutral()
        self._wall_clock = wall_clock
        self._calls = calls
        self._pinger = pinger
        self._clock = clock
        self._blamed: dict[PeerId, float] = {}
        self._planned: dict[PeerId, float] = {}  # the start of the process that the last plan with this peer meant
        self._manifests: dict[ModelId, Manifest] = {}
        self._texts: dict[ModelId, dict[str, bytes]] = {}

    def know(self, model: ModelId, manifest: Manifest, texts: dict[str, bytes]) -> None:
        """A model whose files lie on this machine: nobody needs to be asked."""
        self._manifests[model] = manifest
        self._texts[model] = texts

    async def plan(self, request: TokenRequest, wanted: Plan, dtype: str | None) -> ChainPlan:
        known = self._unblamed(self._lookup.book.holders(request.model, self._wall_clock()))
        need_tokens = len(request.ids) + request.max_new_tokens
        try:  # a look-up may wait for peers that have just died
            return await self._choose(known, request, wanted, dtype, need_tokens)
        except (ModelNotServable, OutOfMemory):
            records = await self._lookup.holders(request.model)
        try:
            return await self._choose(records, request, wanted, dtype, need_tokens)
        except OutOfMemory:  # by records that are some seconds old: the hops themselves know better
            return await self._choose(records, request, wanted, dtype, 0)

    async def _choose(
        self, records: list[NodeRecord], request: TokenRequest, wanted: Plan, dtype: str | None, need_tokens: int
    ) -> ChainPlan:
        await self._pinger.measure_unknown(records, FIRST_PING_S)
        excluded = wanted.exclude - await self._restarted(records, wanted.exclude - request.exclude)
        costs_ms = self._costs_ms(records)

        def plan(without: frozenset[PeerId]) -> routing.Chain:
            return routing.plan_chain(
                records,
                request.model,
                dtype=dtype,
                span=wanted.span,
                me=self._pinger.me,
                me_rtt_ms=self._pinger.book.rtt_ms(),
                exclude=without,
                trust=request.trust,
                max_hops=wanted.hops_left,
                need_tokens=need_tokens,
                penalties_ms=costs_ms,
                first_from=wanted.before,
                last_to=wanted.after,
            )

        named = request.prefiller if wanted.whole else None
        try:
            chain = plan(excluded | {named} if named is not None else excluded)
        except (ModelNotServable, OutOfMemory):
            if named is None:
                raise
            chain = plan(excluded)  # nobody else holds its layers: it decodes, too
        by_peer = {record.peer: record for record in records}
        self._planned |= {hop.peer: by_peer[hop.peer].started_at for hop in chain.hops}
        prefill, why_not = self._prefill(records, request, wanted, chain, excluded, costs_ms)
        planned = prefill.hops if prefill is not None else ()
        self._planned |= {hop.peer: by_peer[hop.peer].started_at for hop in planned}

        def at(peer: PeerId, span: Span) -> PlannedHop:
            return PlannedHop(peer, by_peer[peer].name, span, by_peer[peer].addresses)

        apart = None
        if prefill is not None:
            hops = tuple(at(hop.peer, hop.span) for hop in prefill.hops)
            apart = PrefillPlan(hops, prefill.first_s, prefill.chunk_s, prefill.own_chunk_s, prefill.exact)
        return ChainPlan(tuple(at(hop.peer, hop.span) for hop in chain.hops), chain.dtype, apart, why_not)

    def _prefill(
        self,
        records: list[NodeRecord],
        request: TokenRequest,
        wanted: Plan,
        chain: routing.Chain,
        exclude: frozenset[PeerId],
        costs_ms: Mapping[PeerId, float],
    ) -> tuple[PrefillChoice | None, str]:
        """Who computes the prompt for a new chain, if that pays or the client named them; else why not them."""
        positions, named = len(request.ids) - 1, request.prefiller
        if not wanted.whole or not request.may_prefill_apart:
            return None, ""
        if positions < CHUNK_TOKENS:
            return None, f"a prompt of {positions + 1} tokens is too short"
        choice = choose_prefill(
            records,
            request.model,
            chain.dtype,
            [(hop.peer, hop.span) for hop in chain.hops],
            positions,
            exact=request.exactness != "fast",
            named=named,
            me_rtt_ms={**self._pinger.book.rtt_ms(), self._pinger.me: 0.0},
            exclude=exclude,
            trust=request.trust,
            penalties_ms=costs_ms,
            slice_tokens=wanted.slice_tokens,
        )
        if choice is None and named in {hop.peer for hop in chain.hops}:
            return None, "it answers itself: nobody else holds its layers"
        if choice is None:
            return None, "it does not hold the layers, or has no room"
        return (choice, "") if named is not None or choice.is_worth_it else (None, "")

    def blame(self, peer: PeerId) -> None:
        self._blamed[peer] = self._clock()

    def _unblamed(self, records: Iterable[NodeRecord]) -> list[NodeRecord]:
        """Without the processes that failed a while ago: before one of these is tried again it is looked up."""
        blamed, planned = self._penalties(), self._planned
        return [r for r in records if r.peer not in blamed or r.started_at > planned.get(r.peer, math.inf)]

    async def _restarted(self, records: list[NodeRecord], failed: Collection[PeerId]) -> set[PeerId]:
        """Peers that failed and run anew, maybe at another address.

        They are asked: the plan may have been older than the process that failed.
        """
        planned = self._planned
        anew = [r for r in records if r.peer in failed and r.started_at > planned.get(r.peer, math.inf)]
        return await self._pinger.answering(anew, FIRST_PING_S) if anew else set()

    def _penalties(self) -> dict[PeerId, float]:
        now = self._clock()
        self._blamed = {peer: at for peer, at in self._blamed.items() if now - at < BLAME_S}
        return {peer: BLAME_MS * (1 - (now - at) / BLAME_S) for peer, at in self._blamed.items()}

    def _costs_ms(self, records: Iterable[NodeRecord]) -> dict[PeerId, float]:
        blamed = self._penalties()
        return {r.peer: blamed.get(r.peer, 0.0) + self.standing.cost_ms(r.peer) for r in records}

    async def models(self) -> list[ServedModel]:
        by_model: dict[ModelId, list[NodeRecord]] = {}
        for record in await self._lookup.nodes():
            for model in {hosted.model for hosted in record.hosted}:
                by_model.setdefault(model, []).append(record)
        return [_served(model, records) for model, records in sorted(by_model.items())]

    async def _holder_ids(self, model: ModelId) -> list[PeerId]:
        records = await self._lookup.holders(model)
        if not records:
            raise ModelNotServable(f"no peer of this swarm holds any part of model {model[:12]}")
        return [record.peer for record in records]

    async def manifest(self, model: ModelId) -> Manifest:
        if model not in self._manifests:
            self._manifests[model] = await blobs.fetch_manifest(self._calls, await self._holder_ids(model), model)
        return self._manifests[model]

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        if model not in self._texts:
            manifest = await self.manifest(model)
            holders = await self._holder_ids(model)
            self._texts[model] = await blobs.fetch_texts(self._calls, holders, model, manifest)
        return self._texts[model]


def _served(model: ModelId, records: Sequence[NodeRecord]) -> ServedModel:
    hosted = [item for record in records for item in record.hosted if item.model == model]
    layers = hosted[0].layers
    gaps_by_dtype = {
        dtype: missing(whole(layers), [item.span for item in hosted if item.dtype == dtype])
        for dtype in sorted({item.dtype for item in hosted})
    }
    best = min(gaps_by_dtype.values(), key=lambda gaps: sum(len(gap) for gap in gaps))
    return ServedModel(
        id=model,
        name=hosted[0].name,
        layers=layers,
        max_context=min(item.max_context for item in hosted),
        dtypes=tuple(gaps_by_dtype),
        holders=len(records),
        missing=", ".join(describe(gap, layers) for gap in best),
    )
