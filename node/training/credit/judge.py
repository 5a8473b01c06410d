"""The owner's trainer as a judge: it asks for every claim of a round, draws, has the drawn ones shown, and judges them.

Claims are asked for beside its own inner steps; what has been shown is examined between two rounds, so that the model
is nobody else's meanwhile. Where rounds are so short that trainers would throw away what is not fetched yet, the judge
waits a little before its next step, and they for it; how much for whom, `patience` bounds. A claim that is not drawn,
or that comes too late, is worth nothing; one that is not shown when it was drawn, too.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from shoal.compression.update_codec import Values
from shoal.incentives import entry as entries
from shoal.incentives import step_statement, training_draw
from shoal.incentives.audit_threshold import Finding
from shoal.incentives.balances import FALSE, OF_TRAINING, SOUND
from shoal.incentives.bodies import Train, Verdict
from shoal.incentives.chain import Accepted, Refused
from shoal.incentives.entry import Entry
from shoal.incentives.ledger import Ledger
from shoal.incentives.session_meter import CatchUp
from shoal.incentives.step_statement import StepStatement, carried_hash
from shoal.node.training.data.assignment import Share
from shoal.node.training.update_audit import moments_digest
from shoal.node.training.worker import Applied, WorkerParts
from shoal.swarm import peer_id
from shoal.swarm.errors import MalformedMessage, ShoalError
from shoal.swarm.identifiers import PeerId
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.run_identity import run_id

from .evidence import Judgement
from .examination import Examined, RoundFacts, Shown, examined, statement_problem
from .fetching import Showing, asked_claim
from .kept_work import NOTHING
from .messages import Claim
from .patience import Patience

UNDECIDED = 2
TRIES, AGAIN_S = 40, 0.5  # for a claim that is not written yet
FRESH = carried_hash(moments_digest({}), NOTHING)  # of a trainer that has just begun
MOST_UNTOLD = 256  # judgements that wait for a disk with room
STEPS_APART = 4  # rounds by which a trainer's count of steps may differ from the judge's
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A claim that was drawn. shown: None until it was"""

    facts: RoundFacts
    peer: PeerId
    claim: Claim
    entry: Entry
    statement: StepStatement
    share: Share
    of_others: tuple[Share, ...]
    percent: int
    draw: training_draw.Draw
    shown: Shown | None = None


@dataclass(slots=True)
class Judge:
    """file: where its judgements are kept; their hashes stand in its verdicts"""

    ledger: Ledger
    parts: WorkerParts
    calls: MemberCalls
    catch_up: CatchUp
    tasks: anyio.abc.TaskGroup
    file: Path
    clock: Callable[[], float] = anyio.current_time
    run: bytes = field(init=False)
    _outer: Values = field(init=False)
    _outer_step: int = 0
    _ready: list[Case] = field(default_factory=list)
    _carries: dict[PeerId, tuple[int, bytes]] = field(default_factory=dict)  # round of its last claim; what it carries
    _before: int = -1  # the last round
    _heard: set[tuple[int, PeerId]] = field(default_factory=set)  # rounds and trainers of claims that are being fetched
    _patience: Patience = field(default_factory=Patience)
    _untold: list[tuple[Judgement, Verdict]] = field(default_factory=list)
    _telling: anyio.Lock = field(default_factory=anyio.Lock)
    _news: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self.run = bytes.fromhex(run_id(self.parts.strategy.spec))
        self._outer = self.parts.strategy.outer.values.copy()
        self._outer_step = self.parts.strategy.step

    def applied(self, applied: Applied, roots: dict[PeerId, bytes]) -> None:
        """On the event loop, at once after a round."""
        outcome, strategy = applied.outcome, self.parts.strategy
        before, self._outer = self._outer, strategy.outer.values.copy()
        first, self._outer_step = self._outer_step, strategy.step
        last, self._before = self._before, outcome.round
        facts = RoundFacts(outcome, before, applied.before, {str(peer): root for peer, root in roots.items()})
        others = [(peer, tokens) for peer, tokens in outcome.contributors if peer != self.parts.me]
        percent = training_draw.percent_looked_at(len(others))
        for peer, tokens in others:
            share = self.parts.progress.share(peer, outcome.round)
            if share is not None and peer in roots:
                self._heard.add((outcome.round, peer))
                self.tasks.start_soon(self._hear, facts, peer, tokens, share, percent, (last, first))

    def restart(self) -> None:
        """The outer parameters have moved in some other way."""
        self._outer = self.parts.strategy.outer.values.copy()
        self._outer_step = self.parts.strategy.step
        self._before = -1

    async def _hear(
        self, facts: RoundFacts, peer: PeerId, tokens: int, share: Share, percent: int, when: tuple[int, int]
    ) -> None:
        round_ = facts.outcome.round
        try:
            await self._ask(facts, peer, tokens, share, percent, when)
        finally:
            self._heard.discard((round_, peer))
            self._news.set()

    async def _ask(
        self, facts: RoundFacts, peer: PeerId, tokens: int, share: Share, percent: int, when: tuple[int, int]
    ) -> None:
        round_ = facts.outcome.round
        try:
            claim = await self._claim(peer, round_)
            if claim is None:
                return
            entry, statement = entries.decode(claim.entry), step_statement.decode(claim.statement)
            problem = self._problem(facts, peer, tokens, claim, entry, statement, when)
            linked = self._link(peer, round_, statement, when[0]) if not problem else False
            if problem or not await self._kept(peer, entry):
                log.warning("claim_refused", round=round_, peer=peer, reason=problem or "its entry does not follow")
                return
        except ShoalError as error:
            log.warning("claim_refused", round=round_, peer=peer, reason=str(error))
            return
        draw = training_draw.drawn(self.ledger.identity, entries.hash_of(entry), percent, statement.intervals)
        if not draw.looked_at:
            return
        case = Case(facts, peer, claim, entry, statement, share, self._of_others(facts, peer), percent, draw)
        if not linked:
            await self._tell(case, Examined(Finding.FAR, "what its work began with is not known from a round before"))
            return
        await self._have_shown(case)

    def _of_others(self, facts: RoundFacts, peer: PeerId) -> tuple[Share, ...]:
        """What all others trained on in the round, the judge among them, in an order that the trainer cannot know."""
        share, outcome = self.parts.progress.share, facts.outcome
        found = [share(other, outcome.round) for other, _ in outcome.contributors if other != peer]
        several = [each for each in found if each is not None]
        return tuple(random.SystemRandom().sample(several, len(several)))

    async def _have_shown(self, case: Case) -> None:
        strategy = self.parts.strategy
        showing = Showing(self.calls, case.peer, self.run, case.facts.outcome.round, strategy.spec)
        try:
            shown = await showing.of(case.draw.interval, case.claim, case.facts, strategy.settings)
        except MalformedMessage as error:
            await self._tell(case, Examined(Finding.GROSS, str(error)))
        except ShoalError as error:
            await self._tell(case, Examined(Finding.FAR, f"it was not shown: {error}"))
        else:
            self._ready.append(replace(case, shown=shown))

    async def _claim(self, peer: PeerId, round_: int) -> Claim | None:
        """A trainer writes it a moment after the round. raises: ShoalError"""
        for _ in range(TRIES):
            claim = await asked_claim(self.calls, peer, self.run, round_)
            if claim is not None or self._before > round_ + 1:
                return claim
            await anyio.sleep(AGAIN_S)
        return None

    def _problem(
        self,
        facts: RoundFacts,
        peer: PeerId,
        tokens: int,
        claim: Claim,
        entry: Entry,
        statement: StepStatement,
        when: tuple[int, int],
    ) -> str:
        """Why the claim is none, or an empty string."""
        body, key, round_ = entry.body, peer_id.public_key_of(peer), facts.outcome.round
        if not isinstance(body, Train) or entry.author != key or statement.trainer != key:
            return "it is not a TRAIN of this trainer"
        if (body.run, body.round, statement.run, statement.round) != (self.run, round_, self.run, round_):
            return "it is of another round"
        if body.statement != step_statement.hash_of(statement) or not step_statement.is_signed(statement):
            return "its statement is not the one that it names"
        if body.tokens != tokens:
            return "it claims other tokens than it took part with"
        if not body.update == statement.update == facts.roots[str(peer)]:
            return "its update is not the one that it took part with"
        interval = self.parts.strategy.settings.interval
        if statement.every * statement.intervals != interval:
            return "it is of another number of steps"
        if abs(statement.first - when[1]) > STEPS_APART * interval:
            return "its steps are numbered otherwise"
        if statement.before != facts.before_hash:
            return "its work did not begin at the state of the round"
        return statement_problem(statement, claim.marks, claim.residuals)

    def _link(self, peer: PeerId, round_: int, statement: StepStatement, last: int) -> bool:
        """Whether its moments and error feedback are those that it ended the round before with."""
        known, self._carries[peer] = self._carries.get(peer), (round_, statement.carries)
        return statement.carried == FRESH or known == (last, statement.carried)

    async def _kept(self, peer: PeerId, entry: Entry) -> bool:
        """Whether the TRAIN stands in our ledger. raises: ShoalError"""
        verdict = (await self.ledger.receive([entry]))[-1]
        if verdict == Refused("gap"):
            held = (await self.ledger.chain(entry.author)).length
            missing = await self.catch_up(peer, entry.author, held, entry.seq)
            verdict = (await self.ledger.receive([*missing, entry]))[-1]
        return isinstance(verdict, Accepted) or verdict == Refused("known")

    async def to_the_end(self) -> None:
        """Judge what was shown after the last round, too. raises: OutOfMemory"""
        self._before += 1
        await self.between_rounds()

    async def between_rounds(self) -> None:
        """Judge what was shown. raises: OutOfMemory"""
        await self._wait_for_the_late()
        await self._tell_all()
        ready, self._ready = self._ready, []
        for case in ready:
            shown = case.shown
            assert shown is not None
            parts, residual = self.parts, case.claim.residuals[1]
            work = (parts, case.facts, case.statement, residual, case.share, shown, case.of_others)
            await self._tell(case, await anyio.to_thread.run_sync(examined, *work))

    async def _wait_for_the_late(self) -> None:
        """For what is to be shown of a round that trainers are about to throw away."""
        late, patience = self._late(), self._patience
        patience.begin(late, self.clock())
        while late and (limit_s := patience.limit_s(self.clock())) > 0:
            self._news = anyio.Event()
            with anyio.move_on_after(limit_s):
                await self._news.wait()
            for peer in late - self._late():
                patience.came(peer, self.clock())
            late &= self._late()
        for peer in patience.end(self.clock()):
            log.info("claim_not_waited_for", peer=peer)

    def _late(self) -> set[PeerId]:
        return {peer for round_, peer in self._heard if round_ < self._before}

    async def _tell(self, case: Case, found: Examined) -> None:
        outcome = {Finding.SOUND: SOUND, Finding.GROSS: FALSE}.get(found.finding, UNDECIDED)
        tokens = self._verified(case)
        worth = training_draw.worth(tokens, found.quality, case.percent) if outcome == SOUND else 0
        train = entries.hash_of(case.entry)
        judgement = Judgement(
            train=train.hex(),
            trainer=case.peer,
            round=case.facts.outcome.round,
            percent=case.percent,
            draw=case.draw.proof.hex(),
            interval=case.draw.interval,
            outcome=("sound", "false", "undecided")[outcome],
            reason=found.reason,
            step_distance=found.step_distance,
            payload_distance=found.payload_distance,
            own=found.own,
            mean=found.mean,
            quality=found.quality,
            tokens=tokens,
            credits=worth,
        )
        subject = peer_id.public_key_of(case.peer)
        self._untold.append((judgement, Verdict(subject, OF_TRAINING, train, outcome, judgement.digest(), worth)))
        del self._untold[:-MOST_UNTOLD]
        await self._tell_all()

    async def _tell_all(self) -> None:
        """What cannot be written now, as on a full disk, is tried again after the next round."""
        async with self._telling:
            while self._untold:
                judgement, verdict = first = self._untold[0]
                told = {"round": judgement.round, "peer": judgement.trainer}
                try:
                    with anyio.CancelScope(shield=True):
                        await self._write(judgement, verdict)
                except (ShoalError, OSError) as error:
                    log.warning("judgement_waits", reason=str(error), **told)
                    return
                if self._untold and self._untold[0] is first:  # others may have taken its place meanwhile
                    self._untold.pop(0)
                log.info("training_judged", outcome=judgement.outcome, **told)

    async def _write(self, judgement: Judgement, verdict: Verdict) -> None:
        """No judgement without its verdict. raises: ShoalError, OSError"""
        size = self.file.stat().st_size if self.file.exists() else 0
        try:
            with self.file.open("ab") as file:
                file.write(judgement.line())
                file.flush()
                await self.ledger.append(verdict)
        except (ShoalError, OSError):
            if self.file.exists():
                os.truncate(self.file, size)
            raise

    def _verified(self, case: Case) -> int:
        """Tokens in the windows of those steps, and no more than were claimed."""
        body, sequences = case.entry.body, self.parts.config.batch.sequences
        assert isinstance(body, Train)
        steps = case.statement.every * case.statement.intervals
        windows = case.share.windows(0, steps * sequences)
        counted = sum(self.parts.data.windows.batch([window]).tokens for window in windows)
        return min(body.tokens, counted)
