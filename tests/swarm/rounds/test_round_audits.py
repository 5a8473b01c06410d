"""The check of an owner's work: honest work always passes, every lie in the audited unit is found."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from swarm.rounds.round_peers import run_spec

from shoal.compression.error_feedback import ErrorFeedback
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.audit import AuditJob, affordable_share, draws
from shoal.swarm.rounds.audit_messages import Residual
from shoal.swarm.rounds.decisions import Decision, Done, Member, Roster, ShardResult, bits
from shoal.swarm.rounds.exchange import RunSpec, seed_of
from shoal.swarm.rounds.reducing import CheckJob, ReduceJob, Reduction, aggregate_hash
from shoal.swarm.rounds.residuals import Residuals, Step, residual_root, unit_values

COUNT = 3 * 4096 + 500
PEERS = tuple(PeerId(f"peer{i}") for i in range(6))
ROUND = 4


def work(spec: RunSpec, seed: int = 0, factor: float = 1.0, liars: int = 0) -> tuple[ReduceJob, Reduction]:
    """A reduction in the middle of a run: contributions with a common part, a residual from before."""
    generator = np.random.default_rng(seed)
    common = generator.standard_t(4, COUNT)
    codec, code_seed = spec.codec(), seed_of(ROUND, 0, 0)
    sent = []
    for index, peer in enumerate(PEERS):
        values = (common + generator.standard_t(4, COUNT)).astype(np.float32) * np.float32(1e-3)
        if index < liars:
            values *= np.float32(factor)
        sent.append((peer, 100 + index, codec.encode(values, code_seed)))
    before = (generator.standard_t(3, COUNT) * 1e-3).astype(np.float32)
    feedback = ErrorFeedback(before, spec.reducer_decay)
    job = ReduceJob(spec, ROUND, 0, 0, b"r" * 32, tuple(sent), feedback)
    return job, job.run()


def audit(job: ReduceJob, done: Reduction, unit: int = 0, before_root: bytes | None = b"") -> AuditJob:
    """As an auditor would set it up from what owner and contributors showed."""
    assert done.step is not None
    assert done.payload is not None
    size = unit_values(job.spec.codec(), COUNT)
    residuals = Residuals(job.spec)
    residuals.adopt(ROUND, 0, 0, done.step)
    shown = residuals.show(ROUND, 0, unit, size)
    assert shown is not None
    members = {peer: index for index, peer in enumerate(PEERS)}
    result = ShardResult(0, done.hash, done.root, bits(range(6), 6), bits((members[peer] for peer in done.refused), 6))
    root = residual_root(job.feedback.residual, size) if before_root == b"" else before_root
    evidence = Residual(ROUND, 0, unit, *shown)
    return AuditJob(job.spec, ROUND, 0, result, evidence, root, job.contributions, PEERS, done.payload)


@pytest.mark.parametrize("preset", ["none", "fp16", "int8", "fp4", "sparse", "sparse2", "cocktail"])
@pytest.mark.parametrize("robust", ["mean", "trimmed", "clipped"])
def test_honest_work_passes(preset: str, robust: str) -> None:
    spec = run_spec(COUNT, 1, preset=preset, robust=robust, reducer_decay=0.95)
    job, done = work(spec)
    units = -(-COUNT // unit_values(spec.codec(), COUNT))
    for unit in range(units):
        audited = audit(job, done, unit).run()
        assert (audited.fault, audited.unproven) == ("", "")


@settings(deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 30), st.integers(-60, 60), st.integers(0, 3))
def test_honest_work_passes_whatever_the_scales(seed: int, exponent: int, unit: int) -> None:
    """Chunks of very different size: the codec's scales look at the whole shard, the audit at one chunk."""
    spec = run_spec(COUNT, 1)
    generator = np.random.default_rng(seed)
    steps = np.repeat(2.0 ** generator.integers(-abs(exponent) // 2, 1, 4), 4096)[:COUNT]
    codec, code_seed = spec.codec(), seed_of(ROUND, 0, 0)
    sent = tuple(
        (peer, 10, codec.encode((generator.standard_normal(COUNT) * steps).astype(np.float32), code_seed))
        for peer in PEERS
    )
    job = ReduceJob(spec, ROUND, 0, 0, b"r" * 32, sent, ErrorFeedback.empty(COUNT))
    done = job.run()
    audited = audit(job, done, unit, None).run()
    assert (audited.fault, audited.unproven) == ("", "")


@pytest.mark.parametrize("preset", ["none", "int8", "sparse", "cocktail"])
def test_an_aggregate_that_is_not_the_mean_is_found(preset: str) -> None:
    spec = run_spec(COUNT, 1, preset=preset)
    job, done = work(spec)
    codec, code_seed = spec.codec(), seed_of(ROUND, 0, 0)
    assert done.payload is not None
    honest = codec.decode(done.payload, COUNT, code_seed)
    for lie in (-honest, 2 * honest, np.roll(honest, 1), np.zeros_like(honest)):
        payload = codec.encode(lie.astype(np.float32), code_seed)
        assert audit(job, replace(done, payload=payload)).run().fault


def test_a_residual_that_does_not_add_up_is_found() -> None:
    job, done = work(run_spec(COUNT, 1))
    assert done.step is not None
    other = ErrorFeedback(done.step.after.residual + np.float32(1e-6), done.step.after.decay)
    root = residual_root(other.residual, 4096)
    cheated = replace(done, step=Step(done.step.before, other), root=root)
    assert "what it kept" in audit(job, cheated).run().fault


def test_refusing_honest_updates_or_taking_spoilt_ones_is_found() -> None:
    spec = run_spec(COUNT, 1)
    job, done = work(spec)
    assert done.refused == {}
    left_out = replace(job, contributions=job.contributions[1:]).run()
    silently = audit(job, replace(left_out, refused={PEERS[0]: "I do not like it"}))
    assert "refused 1 updates" in silently.run().fault
    spoilt, fair = work(spec, factor=1000.0, liars=1)
    assert fair.refused.keys() == {PEERS[0]}
    assert audit(spoilt, fair).run().fault == ""
    assert "refused 0 updates" in audit(spoilt, replace(fair, refused={})).run().fault


def test_evidence_that_is_not_what_was_committed_to_proves_nothing() -> None:
    job, done = work(run_spec(COUNT, 1))
    good = audit(job, done)
    bent = msgspec.structs.replace(good.evidence, values=b"\0" * len(good.evidence.values))
    assert replace(good, evidence=bent).run().unproven
    short = msgspec.structs.replace(good.evidence, values=good.evidence.values[:-4])
    assert replace(good, evidence=short).run().unproven
    assert replace(good, before_root=b"x" * 32).run().unproven
    assert replace(good, aggregate=b"else").run().unproven
    assert audit(job, done, 0, None).run().unproven, "a new owner had to start with an empty residual"


def test_malformed_copied_and_foreign_payloads_are_refused_by_name() -> None:
    spec = run_spec(COUNT, 1)
    job, _ = work(spec)
    (a, b, c, d, e, f) = job.contributions
    old = spec.codec().encode(np.ones(COUNT, np.float32), seed_of(ROUND - 1, 0, 0))
    short = spec.codec().encode(np.ones(4096, np.float32), seed_of(ROUND, 0, 0))
    sent = (a, (b[0], 1, b"junk"), (c[0], 1, old), (d[0], 1, short), (e[0], 1, a[2]), f)
    done = replace(job, contributions=sent).run()
    assert set(done.refused) == {PEERS[1], PEERS[2], PEERS[3], PEERS[4]}
    assert "another seed" in done.refused[PEERS[2]]
    assert "copy" in done.refused[PEERS[4]]


def test_an_aggregate_that_no_replica_could_apply_is_seen_before_the_vote() -> None:
    spec = run_spec(COUNT, 1)
    _, done = work(spec)
    assert done.payload is not None
    pair = ((0, aggregate_hash(done.payload), done.payload), (0, aggregate_hash(b"junk"), b"junk"))
    assert CheckJob(spec, ROUND, 0, pair).run().malformed == (aggregate_hash(b"junk"),)


def decision(round_: int, members: int = 5, shards: int = 16) -> Decision:
    roster = Roster(round_, 0, b"s" * 32, tuple(Member(PeerId(f"p{i}"), 1, 1, b"r" * 32) for i in range(members)))
    mask = bits(range(members), members)
    results = tuple(ShardResult(s % members, b"a" * 32, b"b" * 32, mask, mask) for s in range(shards))
    return Decision(Done(round_, b"", roster.name, results, (), ()), roster)


def test_a_drawn_eighth_is_audited_by_somebody_else_than_the_owner() -> None:
    spec = run_spec(16 * 4096, 16)
    drawn = [(number, draw) for number in range(200) for draw in draws(spec, decision(number), 1 / 8)]
    assert 300 < len(drawn) < 500
    assert {draw.shard for _, draw in drawn} == set(range(16))
    for number, draw in drawn:
        value = decision(number).value
        assert isinstance(value, Done)
        owner = f"p{value.shards[draw.shard].owner}"
        assert owner not in (draw.auditor, *draw.jurors)
        assert len({draw.auditor, *draw.jurors}) == 4
    assert len(draws(spec, decision(0), 1.0)) == 16
    assert draws(spec, decision(0, members=2), 1.0) == []


def test_whole_residuals_travel_only_as_often_as_they_cost_little() -> None:
    assert affordable_share(4, 1 / 8) * 32 / 4 <= 0.01
    assert affordable_share(1000, 1 / 8) == 1 / 8
