"""Trainers that claim credit and a judge among them: honest work is paid once, and what was not done is not."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec
import numpy as np
import pytest
import torch
from swarm.bundles import member
from training.tiny_run import tiny_config

from shoal.incentives import entry as entries
from shoal.incentives import training_draw
from shoal.incentives.account import Account
from shoal.incentives.audit_threshold import Finding
from shoal.incentives.bodies import Train, Verdict
from shoal.incentives.entry import Entry
from shoal.incentives.ledger import Ledger
from shoal.incentives.store import Store
from shoal.node.training.config import ConfigFile
from shoal.node.training.credit import judge as judging
from shoal.node.training.credit import messages, patience
from shoal.node.training.credit.claimant import Claimant, can_be_claimed
from shoal.node.training.credit.credited_run import CreditedKeeper
from shoal.node.training.credit.evidence import Judgement
from shoal.node.training.credit.examination import EXACT, finding_of
from shoal.node.training.credit.fetching import asked_claim
from shoal.node.training.credit.judge import Judge
from shoal.node.training.credit.kept_work import moments_of, packed_moments
from shoal.node.training.data.assignment import Share
from shoal.node.training.evaluation import HeldOut
from shoal.node.training.limits import LimitSettings
from shoal.node.training.limits_watch import LimitWatch
from shoal.node.training.local_exchange import LocalGroup
from shoal.node.training.strategies.encoding import encoded, left_out
from shoal.node.training.strategies.outer_loop import OuterLoop
from shoal.node.training.strategies.settings import STRATEGIES
from shoal.node.training.valued_rounds import decoded
from shoal.node.training.worker import Applied, Worker, WorkerParts
from shoal.node.training.worker_parts import parts_of, run_spec
from shoal.node.training.worker_start import prepared
from shoal.swarm.errors import MalformedMessage, OutOfMemory, Refused
from shoal.swarm.identifiers import PeerId
from shoal.swarm.identity import Identity
from shoal.swarm.members.member_calls import MemberCalls
from shoal.swarm.rounds.commitments import Commitment
from shoal.swarm.rounds.exchange import Offer, Outcome, OutOfStep, RunSpec, seed_of
from shoal.swarm.rounds.run_identity import run_id
from shoal.swarm.transports.memory import MemoryNetwork

OWNER, HONEST, CHEAT = (Identity(bytes([n]) * 32) for n in (71, 72, 73))
NOW = 1_800_000_000
ROUNDS = 6
Bend = Callable[[RunSpec, Offer], Offer]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


@pytest.fixture(autouse=True)
def all_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(training_draw, "percent_looked_at", lambda _: 100)
    monkeypatch.setattr(judging, "AGAIN_S", 0.02)
    monkeypatch.setattr(judging, "TRIES", 1000)  # a busy machine writes claims late, and shows them late
    monkeypatch.setattr(patience, "MOST_S", 60.0)
    monkeypatch.setattr(patience, "ALLOWANCE_S", 600.0)


class Quiet:
    """A keeper that keeps nothing."""

    def applied(self, worker: Worker, applied: Applied) -> None:
        return

    def lost(self, round_: int) -> None:
        return

    def evaluated(self, worker: Worker, round_: int, found: HeldOut) -> None:
        return

    async def rounds_done(self, worker: Worker) -> None:
        return

    async def catch_up(self, worker: Worker, loop: OuterLoop, missed: OutOfStep) -> str:
        raise missed


@dataclass
class Bent:
    """An exchange that may offer something else than the work; what all committed to is known to all."""

    group: LocalGroup
    me: PeerId
    roots: dict[int, dict[PeerId, bytes]]
    bend: Bend | None
    offers: dict[int, Offer] = field(default_factory=dict)

    async def exchange(self, offer: Offer) -> Outcome:
        offer = self.bend(self.group.spec, offer) if self.bend else offer
        self.offers[offer.round] = offer
        root = Commitment(run_id(self.group.spec), offer.round, 0, self.me, offer.payloads).root
        self.roots.setdefault(offer.round, {})[self.me] = root
        return await self.group.exchange_of(self.me).exchange(offer)

    def committed(self, round_: int) -> dict[PeerId, bytes]:
        return self.roots.get(round_, {})


class BoldClaimant(Claimant):
    """It claims what it offered, as if that were its work."""

    exchange: Bent

    def applied(self, applied: Applied) -> Any:  # noqa: ANN401
        return super().applied(replace(applied, offer=self.exchange.offers[applied.outcome.round]))


@dataclass
class Trainer:
    identity: Identity
    ledger: Ledger
    worker: Worker
    parts: WorkerParts
    around: CreditedKeeper
    claimant: Claimant
    calls: MemberCalls


class Group:
    def __init__(self, folder: Path, file: ConfigFile, network: MemoryNetwork, tasks: anyio.abc.TaskGroup) -> None:
        self.folder, self.file, self.network, self.tasks = folder, file, network, tasks
        self.roots: dict[int, dict[PeerId, bytes]] = {}
        self.trainers: list[Trainer] = []
        self.group: LocalGroup | None = None
        self.judge: Judge

    async def add(
        self, identity: Identity, bend: Bend | None = None, tamper: Callable[[WorkerParts], None] | None = None
    ) -> Trainer:
        me, judges = identity.peer_id, frozenset({OWNER.public_key})
        ready = prepared(self.file, self.folder / "cache")
        spec = run_spec(ready, self.file.config)
        self.group = self.group or LocalGroup(spec, [who.peer_id for who in (OWNER, HONEST, CHEAT)])
        parts = parts_of(ready, self.file.config, spec, me)
        if tamper is not None:
            tamper(parts)
        ledger = Ledger(Store(None, judges=judges), identity, lambda: float(NOW), in_thread=False)
        calls = member(self.network.join(me))
        exchange = Bent(self.group, me, self.roots, bend)
        claimant = BoldClaimant(ledger, parts, self.folder / me / "steps", judges)
        claimant.exchange = exchange
        await claimant.serve(calls)
        judge = None
        if identity is OWNER:
            judge = Judge(ledger, parts, calls, self.catch_up, self.tasks, self.folder / "judgements.jsonl")
            self.judge = judge
        around = CreditedKeeper(Quiet(), claimant, judge, exchange, self.tasks)  # type: ignore[arg-type]
        worker = Worker(parts, exchange, around, lambda _: None, LimitWatch(LimitSettings()))
        worker.watcher = claimant
        self.trainers.append(Trainer(identity, ledger, worker, parts, around, claimant, calls))
        return self.trainers[-1]

    async def catch_up(self, peer: PeerId, author: bytes, start: int, stop: int) -> list[Entry]:
        return next(t for t in self.trainers if t.identity.peer_id == peer).ledger.store.of(author, start, stop)

    async def train(self) -> list[Judgement]:
        async def one(trainer: Trainer) -> None:
            await trainer.worker.run()
            assert self.group is not None
            self.group.leave(trainer.identity.peer_id)

        with anyio.fail_after(120):
            async with anyio.create_task_group() as tasks:
                for trainer in self.trainers:
                    tasks.start_soon(one, trainer)
            await self.trainers[0].around.judge(to_the_end=True)
        lines = (self.folder / "judgements.jsonl").read_bytes().splitlines()
        return [msgspec.json.decode(line, type=Judgement) for line in lines]

    def account(self, identity: Identity) -> Account:
        """As the judge's ledger has it."""
        return self.trainers[0].ledger.store.balances.account(identity.public_key)


@asynccontextmanager
async def group_of(folder: Path, strategy: str = "diloco") -> AsyncIterator[Group]:
    file = tiny_config(folder, rounds=ROUNDS, strategy={"name": strategy, "interval": 4})
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(MemoryNetwork(0))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        yield Group(folder, file, network, tasks)
        tasks.cancel_scope.cancel()


def of(found: Sequence[Judgement], who: Identity) -> list[Judgement]:
    return [judgement for judgement in found if judgement.trainer == who.peer_id]


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", ["diloco", "sparse"])
async def test_honest_work_is_judged_sound_and_paid_once(tmp_path: Path, strategy: str) -> None:
    async with group_of(tmp_path, strategy) as group:
        for who in (OWNER, HONEST, CHEAT):  # honest this time
            await group.add(who)
        found = await group.train()
        assert {judgement.outcome for judgement in found} == {"sound"}, found
        assert all(judgement.step_distance is not None and judgement.step_distance < 1e-4 for judgement in found)
        for who in (HONEST, CHEAT):
            judged = of(found, who)
            assert len(judged) >= ROUNDS - 3
            assert len({judgement.round for judgement in judged}) == len(judged)
            assert group.account(who).waiting == sum(judgement.credits for judgement in judged) > 0
            assert all(judgement.tokens == 4 * 4 * 32 for judgement in judged)
        assert group.account(OWNER).waiting == 0, "nobody judges himself"
        states = {trainer.worker.strategy.outer.hash() for trainer in group.trainers}
        assert len(states) == 1, "judging leaves the judge's own training as it was"
        await replayed(group)


async def replayed(group: Group) -> None:
    """The same TRAIN again, as a new entry, and another verdict on it."""
    judge, trainer = group.trainers[0], group.trainers[1]
    had = group.account(HONEST).waiting
    chain = trainer.ledger.store.of(trainer.identity.public_key)
    trains = [entry.body for entry in chain if isinstance(entry.body, Train)]
    again = [await trainer.ledger.append(body) for body in trains]
    await judge.ledger.receive(chain)
    await judge.ledger.receive(again)
    credited = judge.ledger.store.balances.credited
    for entry in again:
        assert isinstance(entry.body, Train)
        if HONEST.public_key + entry.body.run + entry.body.round.to_bytes(4, "big") in credited:
            verdict = Verdict(HONEST.public_key, 1, entries.hash_of(entry), 0, bytes(32), entry.body.tokens)
            await judge.ledger.append(verdict)
    assert group.account(HONEST).waiting == had
    assert judge.ledger.store.balances.imbalance() == 0


def flipped(spec: RunSpec, offer: Offer) -> Offer:
    values = -decoded(spec, Outcome(offer.round, 0, offer.payloads, ()))
    return replace(offer, payloads=encoded(spec, 0.0, offer.round, 0, np.ascontiguousarray(values), None)[0])


class Delayed:
    """Its own update of the round before, brought again as new."""

    def __init__(self) -> None:
        self._last: tuple[bytes, ...] | None = None

    def __call__(self, spec: RunSpec, offer: Offer) -> Offer:
        now, self._last = self._last, offer.payloads
        if now is None:
            return offer
        values = decoded(spec, Outcome(offer.round - 1, 0, now, ()))
        return replace(offer, payloads=encoded(spec, 0.0, offer.round, 0, values, None)[0])


def works_as(other: Identity) -> Callable[[WorkerParts], None]:
    """It repeats the work of another trainer, to the bit, instead of its own."""

    def tamper(parts: WorkerParts) -> None:
        take, share = parts.progress.take, parts.progress.share

        def copied(own: Share, round_: int, count: int) -> list[int]:
            return take(share(other.peer_id, round_) or own, round_, count)

        parts.progress.take = copied  # type: ignore[method-assign]

    return tamper


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("bend", "tamper"),
    [(flipped, None), (Delayed(), None), (None, works_as(HONEST))],
    ids=["sign-flipped", "delayed", "copied from another peer"],
)
async def test_an_update_that_is_not_the_work_mints_nothing(
    tmp_path: Path, bend: Bend | None, tamper: Callable[[WorkerParts], None] | None
) -> None:
    async with group_of(tmp_path) as group:
        await group.add(OWNER)
        await group.add(HONEST)
        await group.add(CHEAT, bend, tamper)
        found = await group.train()
        assert {judgement.outcome for judgement in of(found, HONEST)} == {"sound"}
        cheated = [judgement for judgement in of(found, CHEAT) if judgement.round > 1]
        assert len(cheated) > 2
        assert {judgement.outcome for judgement in cheated} == {"false"}, cheated
        assert group.account(CHEAT).waiting == 0
        assert group.account(HONEST).waiting > 0


def goes_farther(parts: WorkerParts) -> None:
    """Its own work, each step a twentieth longer than it should be: no rounding, and nobody else's either."""
    run, parameters = parts.steps.run, parts.parameters

    def longer(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        before = parameters.read().copy()
        done = run(*arguments, **named)
        parameters.write(0, parameters.read() + np.float32(0.05) * (parameters.read() - before))
        return done

    parts.steps.run = longer  # type: ignore[method-assign]


@pytest.mark.anyio
async def test_steps_between_rounding_and_another_work_are_undecided_and_mint_nothing(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        await group.add(OWNER)
        await group.add(HONEST)
        await group.add(CHEAT, tamper=goes_farther)
        bent = of(await group.train(), CHEAT)
        assert len(bent) > 2
        assert {judgement.outcome for judgement in bent} == {"undecided"}, bent
        assert all(0.01 < (judgement.step_distance or 0.0) < 0.1 for judgement in bent)
        assert group.account(CHEAT).waiting == 0
        assert group.account(HONEST).waiting > 0


@pytest.mark.anyio
async def test_a_trainer_that_never_shows_its_work_loses_its_claims_and_not_the_judges_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MOST_S", 0.6)
    monkeypatch.setattr(patience, "ALLOWANCE_S", 1.0)

    async def never(_: PeerId, __: bytes) -> bytes:
        await anyio.sleep_forever()
        raise AssertionError

    async with group_of(tmp_path) as group:
        await group.add(OWNER)
        await group.add(HONEST)
        await (await group.add(CHEAT)).calls.answer(messages.PIECE, never)
        found = await group.train()
        assert {judgement.outcome for judgement in of(found, HONEST)} == {"sound"}
        assert len(of(found, HONEST)) >= ROUNDS - 3
        assert of(found, CHEAT) == []
        left_s = group.judge._patience.left_s(CHEAT.peer_id, anyio.current_time())  # noqa: SLF001
        assert left_s < 0.5, "its allowance was spent, and no more than that"


@pytest.mark.anyio
async def test_a_judge_whose_disk_is_full_for_a_while_tells_later_and_each_judgement_once(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        for who in (OWNER, HONEST, CHEAT):
            await group.add(who)
        ledger = group.trainers[0].ledger
        append, refused = ledger.append, list[Verdict]()

        async def full(body: Any) -> Entry:  # noqa: ANN401
            if isinstance(body, Verdict) and len(refused) < 3:
                refused.append(body)
                raise OutOfMemory("the disk is full")
            return await append(body)

        ledger.append = full  # type: ignore[method-assign]
        found = await group.train()
        assert len(refused) == 3
        told = [entry.body for entry in ledger.store.of(OWNER.public_key) if isinstance(entry.body, Verdict)]
        assert [verdict.evidence for verdict in told] == [judgement.digest() for judgement in found]
        assert {verdict.audited for verdict in refused} <= {verdict.audited for verdict in told}
        assert len({verdict.audited for verdict in told}) == len(told)
        assert group.account(HONEST).waiting == sum(judgement.credits for judgement in of(found, HONEST)) > 0


@pytest.mark.anyio
async def test_whoever_shows_another_state_than_it_signed_for_mints_nothing(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        await group.add(OWNER)
        await group.add(HONEST)
        kept = (await group.add(CHEAT)).claimant._kept  # noqa: SLF001
        read = kept.read

        def altered(round_: int, name: str, offset: int, count: int) -> tuple[int, bytes] | None:
            found = read(round_, name, offset, count)
            if found is None or not name.startswith("parameters"):
                return found
            return found[0], bytes([found[1][0] ^ 1]) + found[1][1:]

        kept.read = altered  # type: ignore[method-assign]
        found = await group.train()
        assert of(found, CHEAT)
        assert {judgement.outcome for judgement in of(found, CHEAT)} == {"false"}
        assert group.account(CHEAT).waiting == 0
        assert {judgement.outcome for judgement in of(found, HONEST)} == {"sound"}


@pytest.mark.anyio
async def test_states_are_shown_to_judges_only(tmp_path: Path) -> None:
    async with group_of(tmp_path) as group:
        for who in (OWNER, HONEST, CHEAT):
            await group.add(who)
        await group.train()
        claimant = group.trainers[1].claimant
        assert claimant.claims
        calls = member(group.network.join(Identity(bytes([9]) * 32).peer_id))
        with pytest.raises(Refused, match="judges only"):
            await asked_claim(calls, HONEST.peer_id, claimant.run, max(claimant.claims))


def test_moments_travel_and_anything_else_is_refused() -> None:
    moments = {"0.0.exp_avg": np.arange(6, dtype=np.float32).reshape(2, 3), "0.0.step": np.float32(3).reshape(())}
    again = moments_of(packed_moments(moments))
    assert again.keys() == moments.keys()
    assert all(np.array_equal(again[name], moments[name]) for name in moments)
    draw = np.random.default_rng(0)
    for _ in range(300):
        try:
            moments_of(draw.bytes(int(draw.integers(1, 60))))
        except MalformedMessage:
            continue
    with pytest.raises(MalformedMessage):
        moments_of(packed_moments({"name": np.array(["object"])}))


def test_what_an_encoder_left_out_can_be_worked_out_from_what_it_sent() -> None:
    spec = RunSpec("r", "m", "d", "sparse", (9000,), "sparse", shards=2)
    draw = np.random.default_rng(1)
    before, update = (draw.normal(size=9000).astype(np.float32) for _ in range(2))
    payloads, after = encoded(spec, 0.95, 3, 0, update, before)
    sent = np.concatenate(
        [
            spec.codec().decode(payload, stop - start, seed_of(3, 0, shard))
            for shard, (payload, (start, stop)) in enumerate(zip(payloads, spec.sharding(0).bounds(), strict=True))
        ]
    )
    assert after is not None
    np.testing.assert_array_equal(left_out(0.95, update, before, sent), after)


def test_rounds_that_do_not_go_from_one_outer_state_to_the_next_are_not_claimed() -> None:
    assert {name for name, settings in STRATEGIES.items() if can_be_claimed(settings)} == {"diloco", "sparse"}


def test_what_lies_between_rounding_and_another_work_is_not_decided() -> None:
    found = [finding_of(distance, EXACT) for distance in (0.0, 1e-3, 2e-3, 0.1, 0.2, float("inf"), float("nan"))]
    assert found == [Finding.SOUND] * 2 + [Finding.FAR] * 2 + [Finding.GROSS] * 3


class CrowdedJudge(Judge):
    """While its first judgement is written, more come than may wait."""

    written: list[int]

    async def _write(self, judgement: Judgement, verdict: Verdict) -> None:
        self.written.append(judgement.round)
        if judgement.round == 0:
            del self._untold[0]


@pytest.mark.anyio
async def test_of_judgements_that_wait_none_goes_because_another_made_room_meanwhile() -> None:
    verdict = Verdict(bytes(32), 1, bytes(32), 2, bytes(32))
    judge = object.__new__(CrowdedJudge)
    judge.written, judge._telling = [], anyio.Lock()
    judge._untold = [(Judgement("", "somebody", round_, 100, "", 0, "undecided", ""), verdict) for round_ in range(3)]
    await judge._tell_all()
    assert judge.written == [0, 1, 2]
