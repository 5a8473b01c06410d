"""What a simulated swarm is judged by: counts per lookup, and the worst that any lookup saw."""

from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class Report:
    """A lookup is `covered` when peers that were known before it began, and alive when it ended, held every unit."""

    peers: int = 0
    killed: int = 0
    drained: int = 0  # left after withdrawing their records
    joined: int = 0
    alive_at_end: int = 0
    lookups: int = 0
    covered: int = 0
    found: int = 0  # covered lookups whose chain led, at last, through live peers only
    found_at_once: int = 0  # of them, without meeting a dead peer
    missed: int = 0  # covered lookups that ended without a chain
    uncovered: int = 0
    uncovered_refused: int = 0  # of them, answered with ModelNotServable
    wrong_chains: int = 0  # with a gap, an overlap, or a unit that its peer does not host
    hops: int = 0  # of the first chains
    dead_hops: int = 0  # of the first chains
    leaving_hops: int = 0  # of the first chains, at peers that are about to leave
    spared_hops: int = 0  # of the first chains, with another peer for all of their layers: a standby or successor
    tries_at_most: int = 0  # chains planned for one lookup
    oldest_ghost_s: float = 0.0  # a dead peer that was still listed: seconds since its death
    listed: int = 0  # records seen by all lookups together
    listed_dead: int = 0
    lookup_s: float = 0.0  # all together
    lookup_s_at_most: float = 0.0
    record_bytes: int = 0  # one signed record, mean
    copies_sent: int = 0
    copies_heard: int = 0  # by all lookups together; a record comes from every replica that is asked
    moved: int = 0  # times that a peer changed its layers
    holes_left: int = 0  # units that nobody held any more when a peer had moved, though nobody who held them had died
    events: int = 0
    simulated_s: float = 0.0
    faults: list[str] = field(default_factory=list)  # the first few, in words

    def note_fault(self, text: str) -> None:
        if len(self.faults) < 20:
            self.faults.append(text)

    def figures(self) -> dict[str, object]:
        """Counts and the rates that follow from them, for a table or JSON."""
        first = max(1, self.found + self.missed)
        return {
            **asdict(self),
            "found_share": self.found / max(1, self.covered),
            "mean_chain": self.hops / first,
            "dead_hop_share": self.dead_hops / max(1, self.hops),
            "spared_hop_share": self.spared_hops / max(1, self.hops),
            "dead_listed_share": self.listed_dead / max(1, self.listed),
            "mean_listing": self.listed / max(1, self.lookups),
            "mean_lookup_s": self.lookup_s / max(1, self.lookups),
            "announce_byte_s": self.copies_sent * self.record_bytes / max(1.0, self.simulated_s) / max(1, self.peers),
            "lookup_bytes": self.copies_heard * self.record_bytes / max(1, self.lookups),
        }
