"""What a judge asks a trainer to show, piece by piece; each file is held against the digest that was signed for."""

from dataclasses import dataclass

from shoal.compression.update_codec import Values
from shoal.node.training.strategies.encoding import begun
from shoal.node.training.strategies.settings import StrategySettings
from shoal.node.training.update_audit import StepState, moments_digest, values_digest
from shoal.swarm.errors import MalformedMessage
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.commitments import Commitment
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.run_identity import largest_payload_bytes, run_id

from . import messages
from .examination import RoundFacts, Shown
from .kept_work import PAYLOADS, RESIDUAL, moments_name, moments_of, parameters_name, payloads_of, values_of
from .messages import PIECE_BYTES, Claim, ClaimWanted, PieceWanted

ANSWER_S = 10.0
MOMENTS = 4  # of a parameter at most, of eight bytes each
SLACK_BYTES = 1 << 20  # for names and the like


async def asked_claim(calls: MemberCalls, peer: PeerId, run: bytes, round_: int) -> Claim | None:
    """raises: ShoalError"""
    body = messages.claim_wanted.encode(ClaimWanted(run, round_))
    answer = await calls.call(peer, messages.CLAIM, body, ANSWER_S)
    return messages.claim.decode(answer) if answer else None


@dataclass(frozen=True, slots=True)
class Showing:
    """Of one trainer and round."""

    calls: MemberCalls
    peer: PeerId
    run: bytes
    round: int
    spec: RunSpec

    async def of(self, interval: int, claim: Claim, facts: RoundFacts, settings: StrategySettings) -> Shown:
        """raises: MalformedMessage when it shows something else than it signed for; other ShoalError when it does not
        show"""
        marks, residual = claim.marks, None
        if settings.feedback and any(claim.residuals[0]):
            residual = await self._values(RESIDUAL, claim.residuals[0])
        begin = begun(facts.before, settings.ahead, residual)
        if values_digest(begin) != marks[0][0]:
            raise MalformedMessage("its work did not begin at the state of the round")
        start = await self._values(parameters_name(interval), marks[interval][0]) if interval else begin
        state = StepState(start, moments_of(await self._file(moments_name(interval), self._most_moments)))
        if moments_digest(state.moments) != marks[interval][1]:
            raise MalformedMessage("other moments than those that were signed for")
        end = await self._values(parameters_name(interval + 1), marks[interval + 1][0])
        last = end
        if interval + 2 < len(marks):
            last = await self._values(parameters_name(len(marks) - 1), marks[-1][0])
        payloads = payloads_of(await self._file(PAYLOADS, self._most_payloads))
        fragment = facts.outcome.fragment
        root = Commitment(run_id(self.spec), self.round, fragment, self.peer, payloads).root if payloads else b""
        if root != facts.roots.get(self.peer):
            raise MalformedMessage("other payloads than those that it committed to")
        return Shown(interval, begin, state, end, last, residual, payloads)

    @property
    def _values_bytes(self) -> int:
        return 4 * self.spec.fragments[0]

    @property
    def _most_moments(self) -> int:
        return SLACK_BYTES + 8 * MOMENTS * self.spec.fragments[0]

    @property
    def _most_payloads(self) -> int:
        bounds = self.spec.sharding(0).bounds()
        return SLACK_BYTES + sum(largest_payload_bytes(stop - start) for start, stop in bounds)

    async def _values(self, name: str, digest: bytes) -> Values:
        found = values_of(await self._file(name, self._values_bytes))
        if values_digest(found) != digest:
            raise MalformedMessage(f"{name} is not what was signed for")
        return found

    async def _file(self, name: str, most_bytes: int) -> bytes:
        data = bytearray()
        while True:
            body = messages.piece_wanted.encode(PieceWanted(self.run, self.round, name, len(data)))
            piece = messages.piece.decode(await self.calls.call(self.peer, messages.PIECE, body, ANSWER_S))
            if piece.size > most_bytes:
                raise MalformedMessage(f"{name} has {piece.size} bytes, more than it can have")
            if len(piece.data) < min(PIECE_BYTES, piece.size - len(data)):  # a byte at a time would never end
                raise MalformedMessage(f"{name} came in smaller pieces than were asked for")
            data += piece.data
            if len(data) >= piece.size:
                return bytes(data)
