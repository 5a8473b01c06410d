"""One check of one shard under way: what it is about, what it still lacks, and what it then asks to be computed."""

from dataclasses import dataclass, field

from shoal.swarm.identifiers import PeerId

from .audit import AuditJob, Draw
from .audit_messages import Residual
from .commitments import is_committed
from .decisions import Decision, Done, Roster, ShardResult, indices
from .exchange import RunSpec
from .history import Holder
from .messages import Upload
from .run_identity import RunId


@dataclass(slots=True)
class Inquiry:
    """before: whose residual the shard had before the round, None where it had to be empty
    accuser: None for the auditor's own check; silence: accused of showing nothing, not of a fault
    """

    decision: Decision
    draw: Draw
    before: Holder | None
    accuser: PeerId | None
    evidence: Residual | None = None
    uploads: dict[PeerId, Upload] = field(default_factory=dict)
    silence: bool = False
    tries: int = 0
    asked_at: float = float("-inf")
    running: bool = False
    over: bool = False

    @property
    def round(self) -> int:
        return self.decision.value.round

    @property
    def roster(self) -> Roster:
        assert self.decision.roster is not None
        return self.decision.roster

    @property
    def result(self) -> ShardResult:
        assert isinstance(self.decision.value, Done)
        return self.decision.value.shards[self.draw.shard]

    @property
    def owner(self) -> PeerId:
        return self.roster.peers[self.result.owner]

    @property
    def arrived(self) -> list[PeerId]:
        """Whose payloads the owner says it had."""
        peers = self.roster.peers
        return [peers[index] for index in indices(self.result.arrived, len(peers))]

    @property
    def missing(self) -> list[PeerId]:
        return [peer for peer in self.arrived if peer not in self.uploads]

    def take(self, run: RunId, spec: RunSpec, upload: Upload) -> bool:
        """Whether it is a payload that this check needs, and the one that its contributor committed to."""
        index = self.roster.index.get(upload.contributor)
        if index is None or upload.contributor not in self.arrived:
            return False
        shards = len(spec.sharding(self.roster.fragment).bounds())
        root = self.roster.members[index].root
        if not is_committed(
            run,
            self.round,
            self.roster.fragment,
            upload.contributor,
            root,
            shards,
            upload.shard,
            upload.payload,
            upload.path,
        ):
            return False
        self.uploads[upload.contributor] = upload
        return True

    def job(self, spec: RunSpec, aggregate: bytes) -> AuditJob:
        """Once nothing is missing."""
        assert self.evidence is not None
        roster = self.roster
        contributions = tuple(
            (peer, roster.members[roster.index[peer]].tokens, self.uploads[peer].payload)
            for peer in sorted(self.arrived)
        )
        root = None if self.before is None else self.before.root
        return AuditJob(
            spec,
            self.round,
            roster.fragment,
            self.result,
            self.evidence,
            root,
            contributions,
            roster.peers,
            aggregate,
        )
