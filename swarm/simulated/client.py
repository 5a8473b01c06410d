"""A client that looks a span up, plans a chain over what it heard, and tries it; and the judge who knows the truth."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal.swarm.errors import ModelNotServable
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.records import NodeRecord
from shoal.swarm.routing.chain_choice import Chain, plan_chain
from shoal.swarm.units import Span, missing

from .directory import Heard
from .peer import SimulatedPeer
from .report import Report


@dataclass(frozen=True, slots=True)
class Query:
    client: SimulatedPeer  # where it stands, and its clock
    model: ModelId
    span: Span
    max_hops: int
    began_at: float
    announced_before: float  # what was announced by then could have been heard


def is_covered(peers: Iterable[SimulatedPeer], model: ModelId, span: Span, announced_before: float) -> bool:
    """Whether peers that are alive, and have announced what they hold since before that time, hold every unit."""
    spans = [
        hosted.span
        for peer in peers
        if peer.alive and peer.record is not None and peer.announced_at <= announced_before
        for hosted in peer.record.hosted
        if hosted.model == model
    ]
    return not missing(span, spans)


class Judge:
    """Carries a lookup to its end and counts what came of it."""

    def __init__(self, report: Report, peers: Mapping[PeerId, SimulatedPeer]) -> None:
        self._report = report
        self._peers = peers

    def judge(self, query: Query, heard: Heard, now: float) -> None:
        report = self._report
        listed = [r for r in heard.records if r.expires_at > now + query.client.clock_skew_s and not r.withdrawn]
        report.lookups += 1
        report.listed += len(listed)
        report.copies_heard += heard.copies
        report.lookup_s += now - query.began_at
        report.lookup_s_at_most = max(report.lookup_s_at_most, now - query.began_at)
        self._note_ghosts(listed, now)
        tries, found = self._try_chains(query, listed, now)
        report.tries_at_most = max(report.tries_at_most, tries)
        if not is_covered(self._peers.values(), query.model, query.span, query.announced_before):
            report.uncovered += 1
            report.uncovered_refused += not found
            return
        report.covered += 1
        report.found += found
        report.found_at_once += found and tries == 1
        if not found:
            report.missed += 1
            report.note_fault(f"no chain for {query.span} of {query.model[-4:]} at {now:.1f} s after {tries} tries")

    def _note_ghosts(self, listed: Sequence[NodeRecord], now: float) -> None:
        for record in listed:
            died_at = self._peers[record.peer].died_at
            if died_at < now:
                self._report.listed_dead += 1
                self._report.oldest_ghost_s = max(self._report.oldest_ghost_s, now - died_at)

    def _try_chains(self, query: Query, listed: Sequence[NodeRecord], now: float) -> tuple[int, bool]:
        """Dial the hops of the cheapest chain; leave out the first that does not answer, and plan anew.

        returns: chains planned, and whether the last one leads through live peers only
        """
        reachable = [self._peers[record.peer] for record in listed if self._peers[record.peer].alive]
        me_rtt_ms = {peer.peer: query.client.rtt_ms(peer) for peer in reachable}
        silent: set[PeerId] = set()
        while True:
            try:
                chain = plan_chain(
                    listed,
                    query.model,
                    span=query.span,
                    me_rtt_ms=me_rtt_ms,
                    exclude=silent,
                    max_hops=query.max_hops,
                )
            except ModelNotServable:
                return len(silent), False
            self._check(chain, query, listed)
            lost = [hop for hop in chain.hops if not self._serves(hop.peer, query.model, hop.span)]
            if not silent:
                self._report.hops += len(chain.hops)
                self._report.dead_hops += len(lost)
                self._report.leaving_hops += sum(self._peers[hop.peer].leaving_since <= now for hop in chain.hops)
                self._report.spared_hops += self._spared(chain, query, listed)
            if not lost:
                return len(silent) + 1, True
            silent.add(lost[0].peer)

    def _spared(self, chain: Chain, query: Query, listed: Sequence[NodeRecord]) -> int:
        """Hops that one peer outside the chain could take over: those that find a standby, or a successor."""
        taken = {hop.peer for hop in chain.hops}
        spans = [h.span for r in listed if r.peer not in taken for h in r.hosted if h.model == query.model]
        return sum(any(span.covers(hop.span) for span in spans) for hop in chain.hops)

    def _serves(self, peer: PeerId, model: ModelId, span: Span) -> bool:
        known = self._peers[peer]
        hosted = known.record.hosted if known.alive and known.record else ()
        return any(item.model == model and item.span.covers(span) for item in hosted)

    def _check(self, chain: Chain, query: Query, listed: Sequence[NodeRecord]) -> None:
        """No gap, no overlap, the whole span, no peer twice, and every hop within what its record says."""
        held = {record.peer: record for record in listed}
        at = query.span.start
        good = len({hop.peer for hop in chain.hops}) == len(chain.hops)
        for hop in chain.hops:
            record = held.get(hop.peer)
            hosted = record.hosted if record else ()
            good &= hop.span.start == at
            good &= any(item.model == query.model and item.span.covers(hop.span) for item in hosted)
            at = hop.span.stop
        if not good or at != query.span.stop:
            self._report.wrong_chains += 1
            self._report.note_fault(f"a wrong chain for {query.span}: {chain.hops}")
