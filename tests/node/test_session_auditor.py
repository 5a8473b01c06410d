"""What a driver does behind its sessions: audits, verdicts with cases, and looking at what others say they found."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import anyio
import msgspec
import pytest
from incentives.chains import continued
from node.audited_swarm import BACK, FRONT, NEW, PROMPT, WHOLE, Peer, Planner, ended, model, run, swarm
from node.audited_swarm import MODEL as MODEL_ID
from node.tiny_models import VOCABULARY
from simulation.session_world import OpenGate

from shoal.incentives import audit_case, audit_draw, audit_evidence, audit_report, work_statement
from shoal.incentives.audit_case import FALSE, SOUND
from shoal.incentives.audit_evidence import audited_hash
from shoal.incentives.audit_threshold import Finding
from shoal.incentives.bodies import Verdict
from shoal.incentives.entry import Entry
from shoal.incentives.ledger import Ledger
from shoal.incentives.refusals import WINDOW_S
from shoal.incentives.sequential_test import Suspicion
from shoal.incentives.standing import FALSE_AUDITS, FALSE_WORK, SHOWS_NO_WORK
from shoal.incentives.store import Store
from shoal.node import session_auditor
from shoal.node.audit_calls import PROTOCOL
from shoal.node.audit_memory import AuditMemory
from shoal.node.audit_records import SessionRecords
from shoal.node.audit_service import MOST_WAITING, AuditService
from shoal.node.model_source import LocalModel
from shoal.node.session_auditor import SessionAuditor
from shoal.swarm.errors import LocalFault, Refused
from shoal.swarm.identifiers import PeerId, SessionId
from shoal.swarm.identity import Identity
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Done, Work
from shoal.swarm.sessions.driver import Driver
from shoal.swarm.sessions.generation import TokenRequest
from shoal.swarm.sessions.lanes import MEMBER, Claim
from shoal.swarm.sessions.messages import Feed, Open
from shoal.swarm.sessions.session import Patience
from shoal.swarm.sessions.work_records import WorkRecord
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.units import Span

__all__ = ["model"]  # a fixture
OWNER = Identity(bytes([81]) * 32)
NOW = 1_790_000_000


class Client:
    """A driver with a ledger that audits what it uses. Nobody's clock but its own goes on."""

    def __init__(self, identity: Identity, network: MemoryNetwork, peers: list[Peer]) -> None:
        self.identity, self.now, self.peers = identity, 0.0, peers
        self.transport = network.join(identity.peer_id)
        self.ledger = Ledger(
            Store(None, judges=frozenset({OWNER.public_key})), identity, lambda: NOW + self.now, in_thread=False
        )
        self.known = AuditMemory(None, lambda: self.now)
        self.audits = SessionAuditor(
            self.transport,
            OpenGate(),
            self.ledger,
            self.known,
            lambda: [peer.record() for peer in self.peers],
            clock=lambda: self.now,
        )
        records = SessionRecords(identity, lambda _: None, anyio.current_time)
        self.service = AuditService(
            self.transport, OpenGate(), identity, records, peers[0], lambda digest: self.known.case(digest)
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Client"]:
        await self.service.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.audits.run)
            yield self
            await self.audits.stop()

    async def use(self, planner: Planner, number: int = 0, when: Callable[[int], None] = lambda _: None) -> None:
        """One session, and its audit. when: called with the number of each token that comes"""
        done = self.audits.audited_sessions
        async with anyio.create_task_group() as tasks:
            patience = Patience(probe_after_s=0.2, probe_s=0.3)
            driver = Driver(
                self.transport, OpenGate(), planner, tasks, patience=patience, seed=number, audits=self.audits
            )
            prompt = tuple((token + number) % VOCABULARY for token in PROMPT)
            async with driver.generate(TokenRequest(MODEL_ID, prompt, NEW)) as stream:
                count = 0
                async for _ in stream:
                    count += 1
                    when(count)
        await until(lambda: self.audits.audited_sessions > done)

    def verdicts(self, outcome: int) -> list[tuple[Entry, Verdict]]:
        found = [(stored.entry, stored.entry.body) for stored in self.ledger.store.after(0)]
        return [(entry, body) for entry, body in found if isinstance(body, Verdict) and body.outcome == outcome]


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(40):
        while not condition():  # noqa: ASYNC110  several parts, none of which has an event for it
            await anyio.sleep(0.01)


def client(number: int, network: MemoryNetwork, peers: list[Peer]) -> Client:
    return Client(Identity(bytes([90 + number]) * 32), network, peers)


async def tell(said: Client, hears: Client) -> None:
    await hears.ledger.receive(said.ledger.store.of(said.ledger.key))


def earn(at: Client, server: Peer, amount: int) -> None:
    at.ledger.store.balances.mint(server.key, amount, bytes(32), NOW)


def test_a_liar_is_convicted_with_a_case_and_the_owner_who_looks_again_takes_its_income(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_auditor, "LOOK_PERIOD_S", 0.05)

    async def scenario() -> None:
        async with swarm(model, lazy=1) as (network, peers):
            user, owner = client(0, network, peers), Client(OWNER, network, peers)
            async with user.running(), owner.running():
                earn(user, peers[1], 1000)
                earn(owner, peers[1], 1000)
                await user.use(Planner(model, [(peers[0], FRONT), (peers[1], BACK)]))
                ((_, verdict),) = user.verdicts(FALSE)
                assert verdict.subject == peers[1].key
                assert [body.subject for _, body in user.verdicts(SOUND)] == [peers[0].key]
                data = user.known.case(verdict.evidence)
                assert data is not None
                assert audit_case.examined(data, verdict).problem == ""
                assert user.ledger.store.balances.account(peers[1].key).waiting == 1000, "it is no judge"
                await tell(user, owner)
                await until(lambda: len(owner.verdicts(FALSE)) == 2)  # the user's and its own
                own = owner.ledger.store.of(OWNER.public_key)
                assert [e.body.subject for e in own if isinstance(e.body, Verdict)] == [peers[1].key]
                assert owner.ledger.store.balances.account(peers[1].key).waiting == 0
                await tell(owner, user)
                assert user.ledger.store.balances.account(peers[1].key).waiting == 0
                assert not owner.known.avoided().keys() - {peers[1].key}

    run(scenario)


def test_a_client_that_lies_about_an_honest_server_harms_itself_and_its_friends_only(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statement and evidence are real, and two keys of its own swear that they are false."""
    monkeypatch.setattr(session_auditor, "LOOK_PERIOD_S", 0.05)
    friends = [Identity(bytes([120 + n]) * 32) for n in range(2)]

    async def accuse(liar: Client, server: Peer, session: SessionId) -> None:
        secret = bytes([5]) * 32
        statement = server.records.statement(liar.transport.me, session, audit_draw.commitment(secret))
        chunks = []
        for index in (0, 1):
            evidence = audit_evidence.encode(server.records.evidence(liar.transport.me, session, index))
            name = audited_hash(statement, index)
            reports = [audit_report.write(each, name, 1.0, 1e-6, 0, Finding.GROSS) for each in friends]
            chunks.append(audit_case.chunk(index, reports, evidence))
        case = audit_case.AuditCase(work_statement.encode(statement), secret, tuple(chunks))
        verdict, data = audit_case.verdict_of(case, FALSE), audit_case.encode(case)
        assert audit_case.examined(data, verdict).problem == "", "nobody can tell without computing"
        liar.known.keep_case(verdict.evidence, data)
        await liar.ledger.append(verdict)

    async def scenario() -> None:
        async with swarm(model, None) as (network, peers):
            liar, owner = client(1, network, peers), Client(OWNER, network, peers)
            async with liar.running(), owner.running():
                earn(owner, peers[0], 1000)
                names: list[SessionId] = []
                for number in range(2):
                    liar.audits.ended = lambda used: names.extend(hop.session for hop in used.hops)  # type: ignore[method-assign]
                    async with anyio.create_task_group() as tasks:
                        planner = Planner(model, [(peers[0], WHOLE)])
                        driver = Driver(liar.transport, OpenGate(), planner, tasks, seed=number, audits=liar.audits)
                        async with driver.generate(TokenRequest(MODEL_ID, PROMPT, NEW)) as stream:
                            [_ async for _ in stream]
                    await ended(peers)
                    await accuse(liar, peers[0], names[number])
                    await tell(liar, owner)
                await until(lambda: owner.known.is_avoided(liar.ledger.key))
                avoided = owner.known.avoided()
                assert avoided.keys() == {liar.ledger.key, *(each.public_key for each in friends)}
                assert set(avoided.values()) == {FALSE_AUDITS}
                assert owner.ledger.store.balances.account(peers[0].key).waiting == 1000
                assert not owner.ledger.store.of(OWNER.public_key)
                said = [entry.body for entry in liar.ledger.store.of(liar.ledger.key)]
                blamed = owner.known.auditor(liar.ledger.key).chunks
                for body in said:
                    assert isinstance(body, Verdict)
                    await owner.audits._look_again(session_auditor._Heard(liar.ledger.key, body))  # noqa: SLF001
                assert owner.known.auditor(liar.ledger.key).chunks == blamed, "the same case is not looked at twice"

    run(scenario)


class TwoFaced:
    """Sends on something else than what is computed, and has the record say what was computed."""

    def __init__(self, peer: Peer, change: Callable[[Done], Done]) -> None:
        self._peer, self._change = peer, change
        self.true: dict[tuple[SessionId, int], Done] = {}
        peer.lying = self
        peer.begin = self.begin  # type: ignore[method-assign]

    async def open(
        self,
        session: SessionId,
        span: Span,
        max_tokens: int,
        sampling: Sampling,
        history: tuple[int, ...],
        claim: Claim = MEMBER,
    ) -> None:
        await self._peer.compute.open(session, span, max_tokens, sampling, history, claim)

    async def run(self, work: Work) -> Done:
        done = self.true[work.session, work.start] = await self._peer.compute.run(work)
        return self._change(done)

    def close(self, session: SessionId) -> None:
        self._peer.compute.close(session)

    def begin(self, request: Open, driver: PeerId) -> WorkRecord | None:
        record, true = self._peer.records.begin(request, driver), self.true
        assert record is not None

        class Recording:
            def worked(self, fed: Feed, done: Done) -> None:
                record.worked(fed, true[request.session, fed.start])

            def ended(self) -> None:
                record.ended()

            def gave_up(self) -> None:
                record.gave_up()

        return Recording()


def one_byte(done: Done) -> Done:
    """The last one, of the least weight: far below what any re-execution could see."""
    flipped = bytearray(done.hidden)
    flipped[-4] ^= 1
    return replace(done, hidden=bytes(flipped))


def other_token(done: Done) -> Done:
    choice = done.choice
    return done if choice is None else replace(done, choice=replace(choice, id=(choice.id + 1) % VOCABULARY))


@pytest.mark.parametrize("place", [0, 1])
def test_one_byte_that_a_hop_sends_on_otherwise_than_it_signs_shows_between_the_two(
    model: LocalModel, place: int
) -> None:
    spans = [(Span(0, 2)), Span(2, 4), Span(4, 6)]

    async def scenario() -> None:
        async with swarm(model, None, 4) as (network, peers):
            TwoFaced(peers[place], one_byte)
            user = client(2, network, peers)
            async with user.running():
                await user.use(Planner(model, list(zip(peers, spans, strict=False))))
                assert user.known.links[peers[place].key][peers[place + 1].key]
                other = peers[1 - place].key, peers[2 - place].key
                assert not user.known.links[other[0]].get(other[1], False)
                assert user.known.avoided() == {}, "one of the two lies, and nobody knows which"

    run(scenario)


def test_a_last_hop_that_sends_other_tokens_than_it_signs_is_found_by_its_client(model: LocalModel) -> None:
    async def scenario() -> None:
        async with swarm(model, None, 4) as (network, peers):
            TwoFaced(peers[1], other_token)
            user = client(3, network, peers)
            async with user.running():
                await user.use(Planner(model, [(peers[0], FRONT), (peers[1], BACK)]))
                assert user.known.avoided() == {peers[1].key: FALSE_WORK}

    run(scenario)


def test_a_server_without_its_records_is_excused_until_it_is_a_habit(model: LocalModel) -> None:
    async def scenario() -> None:
        async with swarm(model, None, 3) as (network, peers):
            user = client(4, network, peers)
            peers[0].begin = lambda *_: None  # type: ignore[method-assign]  as if it were started again each time
            async with user.running():
                for window in range(3):
                    assert not user.known.is_avoided(peers[0].key)
                    for number in range(2):
                        user.now = window * WINDOW_S + number
                        await user.use(Planner(model, [(peers[0], WHOLE)]), 2 * window + number)
                assert user.known.avoided() == {peers[0].key: SHOWS_NO_WORK}
                assert user.known.server(peers[0].key) == Suspicion(), "that is no finding about its work"
                assert not user.verdicts(FALSE)

    run(scenario)


@pytest.mark.parametrize("signed", [False, True])
def test_a_server_without_audits_is_blamed_only_when_it_keeps_a_ledger(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch, *, signed: bool
) -> None:
    async def scenario() -> None:
        async with swarm(model, None, 3) as (network, peers):
            user, serves = client(6, network, peers), peers[0].transport.protocol_handler
            monkeypatch.setattr(
                peers[0].transport, "protocol_handler", lambda name: serves(name) if name != PROTOCOL else None
            )
            if signed:
                await user.ledger.receive(continued(peers[0].identity, [], 1, now=NOW))
            async with user.running():
                await user.use(Planner(model, [(peers[0], WHOLE)]))
                assert (peers[0].key in user.known.refusals) == signed

    run(scenario)


def test_a_server_killed_in_the_middle_of_its_audit_is_not_blamed_and_stops_nothing(model: LocalModel) -> None:
    async def scenario() -> None:
        async with swarm(model, None, 4) as (network, peers):
            user = client(5, network, peers)

            def killed(*_: object) -> NoReturn:
                network.kill(peers[0].peer)
                raise Refused("gone")

            peers[0].records.evidence = killed  # type: ignore[method-assign]
            async with user.running():
                await user.use(Planner(model, [(peers[0], FRONT), (peers[1], BACK)]))
                assert user.known.server(peers[0].key).most == 0
                assert user.known.refusals[peers[0].key].refused
                assert user.known.server(peers[1].key).sound >= 1
                assert user.known.avoided() == {}
                await user.use(Planner(model, [(peers[2], WHOLE)]), 1)
                assert user.known.server(peers[2].key).sound >= 1

    run(scenario)


def test_the_work_of_a_hop_that_took_a_lost_ones_place_is_sound_and_its_replay_breaks_no_link(
    model: LocalModel,
) -> None:
    async def scenario() -> None:
        async with swarm(model, None, 4) as (network, peers):
            user = client(6, network, peers)
            planner = Planner(
                model, [(peers[0], FRONT), (peers[1], FRONT), (peers[2], BACK), (peers[3], BACK)], blames=True
            )

            def lose(count: int) -> None:
                if count == 10:
                    network.kill(peers[0].peer)

            async with user.running():
                await user.use(planner, when=lose)
                assert user.known.server(peers[1].key).sound >= 1
                assert user.known.server(peers[2].key).sound >= 1
                assert all(user.known.server(each.key).most == 0 for each in peers)
                assert user.known.links[peers[1].key] == {peers[2].key: False}
                assert user.known.avoided() == {}

    run(scenario)


def test_a_farmer_of_reputation_is_found_after_it_turns(model: LocalModel) -> None:
    """A thousand honest chunks have brought the rate down to one in twenty, and buy nothing else."""

    async def scenario() -> None:
        async with swarm(model, lazy=0, count=4) as (network, peers):
            user = client(7, network, peers)
            user.known.servers[peers[0].key] = Suspicion(chunks=1000, sound=1000)
            async with user.running():
                for number in range(60):
                    await user.use(Planner(model, [(peers[0], WHOLE)]), number)
                    if user.known.is_avoided(peers[0].key):
                        break
                assert user.known.server(peers[0].key).convicted
                await until(lambda: bool(user.verdicts(FALSE)))
                ((_, verdict),) = user.verdicts(FALSE)
                assert verdict.subject == peers[0].key

    run(scenario)


def test_who_is_busy_or_has_no_room_to_spare_computes_nothing_again(model: LocalModel) -> None:
    async def scenario() -> None:
        async with swarm(model, None, 2) as (network, peers):
            user = client(8, network, peers)
            names: list[SessionId] = []
            user.audits.ended = lambda used: names.extend(hop.session for hop in used.hops)  # type: ignore[method-assign]
            async with anyio.create_task_group() as tasks:
                planner = Planner(model, [(peers[0], WHOLE)])
                driver = Driver(user.transport, OpenGate(), planner, tasks, audits=user.audits)
                async with driver.generate(TokenRequest(MODEL_ID, PROMPT, NEW)) as stream:
                    [_ async for _ in stream]
            await ended(peers)
            peers[0].records.statement(user.transport.me, names[0], bytes(32))
            data = audit_evidence.encode(peers[0].records.evidence(user.transport.me, names[0], 2))
            service = peers[1].service
            assert (await service.report(data)).finding == Finding.SOUND
            for number in range(3):
                await peers[1].compute.open(SessionId(f"full{number}"), WHOLE, 250, Sampling(), ())
            with pytest.raises(Refused, match="needed for sessions"):
                await service.report(data)
            peers[1].compute.close(SessionId("full0"))
            refused: list[Refused] = []

            async def ask() -> None:
                try:
                    await service.report(data)
                except Refused as error:
                    refused.append(error)

            async with anyio.create_task_group() as tasks:
                for _ in range(MOST_WAITING + 3):
                    tasks.start_soon(ask)
            assert len(refused) == 3
            assert "somebody else" in str(refused[0])

    run(scenario)


def test_what_was_found_outlives_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("memory") / "audits.sqlite"
    memory = AuditMemory(path, lambda: 5.0)
    for _ in range(2):
        memory.found(b"a" * 32, Finding.GROSS)
    memory.linked(b"b" * 32, b"c" * 32, false=True)
    memory.answered(b"d" * 32, refused=True)
    memory.keep_case(b"e" * 32, b"case")
    memory.close()
    again = AuditMemory(path, lambda: 6.0)
    assert again.avoided() == {b"a" * 32: FALSE_WORK}
    assert again.links[b"c" * 32] == {b"b" * 32: True}
    assert again.refusals[b"d" * 32].refused
    assert again.case(b"e" * 32) == b"case"
    assert msgspec.msgpack.encode(again.servers) == msgspec.msgpack.encode(memory.servers)
    again.close()


def test_a_damaged_memory_is_put_aside_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "audits.sqlite"
    path.write_bytes(b"rubbish " * 600)
    with pytest.raises(LocalFault, match="cannot read the audits"):
        AuditMemory(path, read_only=True)
    memory = AuditMemory(path)
    memory.keep_case(b"e" * 32, b"case")
    memory.close()
    again = AuditMemory(path, read_only=True)
    assert again.case(b"e" * 32) == b"case"
    again.close()
    assert (tmp_path / "audits.sqlite.damaged").read_bytes() == b"rubbish " * 600


def test_a_memory_that_cannot_be_used_costs_the_memory_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    memory = AuditMemory(tmp_path_factory.mktemp("memory"))  # a folder
    memory.found(b"a" * 32, Finding.SOUND)
    memory.keep_case(b"e" * 32, b"case")
    assert memory.server(b"a" * 32).sound == 1
    assert memory.case(b"e" * 32) is None
