"""A session over real hops and engines, then its audit: the server shows its work, others redo it."""

import pytest
from node.audited_swarm import BACK, FRONT, WHOLE, ended, model, run, served, swarm
from simulation.session_world import OpenGate

from shoal.incentives.audit_threshold import Finding
from shoal.node import audit_calls
from shoal.node.audit_driver import AuditOutcome  # noqa: TC001
from shoal.node.model_source import LocalModel
from shoal.swarm.identifiers import PeerId

__all__ = ["model"]  # a fixture


def test_an_honest_newcomer_is_audited_and_found_sound(model: LocalModel) -> None:
    async def scenario() -> None:
        heard: list[AuditOutcome] = []
        async with swarm(model, None) as (network, peers):
            audits, sessions = await served(network, model, [(peers[0], FRONT), (peers[1], BACK)], heard)
            audits.holders = lambda *_: [(p.peer, p.key) for p in peers]
            await ended(peers)
            for session in sessions:
                result = await audits.audit(session)
                assert result.judged >= 1  # of the first chunk for certain, and of most others
                assert result.case is not None
                assert not result.is_false
            assert {outcome.judgement.finding for outcome in heard} == {Finding.SOUND}
            assert all(audits.known.server(p.key).most == 0 for p in peers[:2])
            first = sessions[0]
            assert audits.known.server(first.key).sound == sum(o.subject == first.key for o in heard)

    run(scenario)


def test_a_hop_that_skips_a_layer_is_convicted_by_one_session(model: LocalModel) -> None:
    async def scenario() -> None:
        heard: list[AuditOutcome] = []
        async with swarm(model, lazy=1) as (network, peers):
            audits, sessions = await served(network, model, [(peers[0], FRONT), (peers[1], BACK)], heard)
            audits.holders = lambda *_: [(p.peer, p.key) for p in (peers[0], *peers[2:])]
            await ended(peers)
            for session in sessions:
                await audits.audit(session)
            assert audits.known.server(peers[1].key).convicted
            assert not audits.known.server(peers[0].key).convicted
            against = [o for o in heard if o.subject == peers[1].key]
            assert {o.judgement.finding for o in against} == {Finding.GROSS}
            assert all(len(o.reports) == 4 for o in against)
            assert not any(s.convicted for s in audits.known.auditors.values())

    run(scenario)


def test_an_auditor_that_computes_falsely_harms_itself_only(model: LocalModel) -> None:
    """Peer 4 lacks a layer: whatever it replays looks false to it."""

    async def scenario() -> None:
        heard: list[AuditOutcome] = []
        async with swarm(model, lazy=4) as (network, peers):
            for attempt in range(8):  # until the draw has asked peer 4 first
                audits, sessions = await served(network, model, [(peers[0], WHOLE)], heard, f"driver{attempt}")
                audits.holders = lambda *_: [(p.peer, p.key) for p in peers]
                await ended(peers)
                await audits.audit(sessions[0])
                assert not audits.known.server(peers[0].key).convicted
                if audits.known.auditor(peers[4].key).most > 0:
                    break
            assert audits.known.auditor(peers[4].key).most > 0
            assert {o.judgement.finding for o in heard} == {Finding.SOUND}
            assert {key for o in heard for key in o.judgement.dissenters} == {peers[4].key}

    run(scenario)


def test_work_is_signed_for_once_and_shown_to_its_driver_alone(model: LocalModel) -> None:
    async def scenario() -> None:
        async with swarm(model, None, 2) as (network, peers):
            _, sessions = await served(network, model, [(peers[0], WHOLE)], [])
            await ended(peers)
            records, name = peers[0].records, sessions[0].session
            first = records.statement(PeerId("driver"), name, bytes(32))
            assert records.statement(PeerId("driver"), name, bytes([1]) * 32) == first
            stranger = network.join(PeerId("stranger"))
            question = audit_calls.AskStatement(name, bytes(32))
            with pytest.raises(Exception, match="no session of yours"):
                await audit_calls.ask(stranger, OpenGate(), peers[0].peer, question, 5.0)

    run(scenario)
