"""Real nodes with ledgers audit one another: a liar is found, told of, avoided and loses its income; others are not.

The liar is an honest node whose shard has lost a layer: nothing in the product lies.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import torch
from node.families.three_nodes import generate, running_nodes
from node.tiny_models import VOCABULARY, make_model, save_model

from shoal.incentives import audit_case
from shoal.incentives.account import Account
from shoal.incentives.audit_case import FALSE, SOUND
from shoal.incentives.bodies import Train, Verdict
from shoal.incentives.entry import hash_of
from shoal.node import audit_calls
from shoal.node.auditing import Auditing
from shoal.node.books import Books
from shoal.node.node import Node
from shoal.swarm.identifiers import PeerId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import TokenRequest

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(240)]
PATIENCE_S = 90.0
NEW = 40


class Missing:
    """A layer that is not computed."""

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return x


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(make_model("llama"), tmp_path_factory.mktemp("reference") / "tiny")


@asynccontextmanager
async def three(tmp_path: Path, folder: Path) -> AsyncIterator[list[Node]]:
    """Each holds the whole model and keeps a ledger, and may sign."""
    async with running_nodes(tmp_path) as running:
        for _ in range(3):
            await running.start(folder, "embed+0:4+head", ledger=True)
        for node in running.nodes:
            await until(lambda node=node: books(node).ledger.may_sign, "it may sign")
        yield running.nodes


def books(node: Node) -> Books:
    assert node.books is not None
    return node.books


def auditing(node: Node) -> Auditing:
    assert node.auditing is not None
    return node.auditing


def key(node: Node) -> bytes:
    return books(node).ledger.key


def account(at: Node, of: Node) -> Account:
    return books(at).ledger.store.balances.account(key(of))


def verdicts(at: Node) -> list[tuple[bytes, Verdict]]:
    found = [(stored.entry.author, stored.entry.body) for stored in books(at).ledger.store.after(0)]
    return [(author, body) for author, body in found if isinstance(body, Verdict)]


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        with anyio.fail_after(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  several nodes, none of which has an event for it
                await anyio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE_S} s: {what}") from None


def asking(node: Node, number: int, *, through: Sequence[Node] = (), without: Sequence[Node] = ()) -> TokenRequest:
    (hosted,) = node.hosted
    prompt = tuple((7 * i + 11 * number + 1) % VOCABULARY for i in range(30 + 7 * (number % 5)))
    sampling = Sampling(temperature=0.8, seed=number) if number % 3 == 2 else Sampling()
    trust = frozenset(PeerId(n.transport.me) for n in through)
    exclude = frozenset(PeerId(n.transport.me) for n in without)
    return TokenRequest(hosted.model, prompt, NEW, sampling, trust=trust, exclude=exclude)


async def give_income(owner: Node, worker: Node, tokens: int) -> None:
    """By work of a training that the swarm's owner finds sound."""
    entry = await books(worker).ledger.append(Train(b"run", 1, tokens, bytes(32), bytes(32), bytes(32)))
    await books(owner).ledger.append(Verdict(key(worker), 1, hash_of(entry), SOUND, bytes(32), tokens))
    for node in (owner, worker):
        await until(lambda node=node: account(node, worker).waiting == tokens, "the income is known")


@pytest.mark.anyio
async def test_a_liar_is_found_told_of_avoided_and_loses_what_it_earned(folder: Path, tmp_path: Path) -> None:
    async with three(tmp_path, folder) as (owner, liar, honest):
        await give_income(owner, liar, 1000)
        (hosted,) = liar.hosted
        hosted.engine.shard.layers[2] = Missing()
        for session in range(3):
            await generate(owner, asking(owner, session, through=[liar]))

        def accused(at: Node) -> list[Verdict]:
            return [body for author, body in verdicts(at) if author == key(owner) and body.outcome == FALSE]

        for node in (owner, honest, liar):
            await until(lambda node=node: bool(accused(node)), "the verdict is heard")
        verdict = accused(honest)[0]
        assert verdict.subject == key(liar)
        data = await audit_calls.ask(
            honest.transport, honest.setup.gate, owner.transport.me, audit_calls.AskCase(verdict.evidence), 20.0
        )
        examined = audit_case.examined(data, verdict)
        assert examined.problem == ""
        assert examined.auditors == {key(owner), key(honest)}
        for node in (owner, honest):
            assert account(node, liar).waiting == 0, "what had not vested is taken away"
            await until(lambda node=node: node.planner.standing.remark(liar.transport.me) == "false work", "avoided")
        for session in range(3):
            _, route = await generate(owner, asking(owner, session, without=[owner]))
            assert [hop.peer for hop in route.hops] == [honest.transport.me]
        assert not any(auditing(owner).known.is_avoided(key(node)) for node in (owner, honest))
        assert {body.subject for _, body in verdicts(owner) if body.kind == 0 and body.outcome == FALSE} == {key(liar)}


@pytest.mark.anyio
async def test_honest_nodes_are_found_sound_in_any_batch_and_a_node_that_stops_mid_audit_is_not_blamed(
    folder: Path, tmp_path: Path
) -> None:
    async with three(tmp_path, folder) as (owner, first, second):

        async def ask(number: int) -> None:
            await generate(owner, asking(owner, number, through=[(first, second)[number % 2]]))

        async with anyio.create_task_group() as asked:
            for number in range(12):
                asked.start_soon(ask, number)
        for number in range(12, 18):
            await ask(number)
        audits = auditing(owner)
        await until(lambda: audits.sessions.audited_sessions == 18, "all sessions are looked at")
        for node in (first, second):
            known = audits.known.server(key(node))
            assert known.most == 0
            assert known.sound == known.chunks >= 8
            assert not audits.known.refusals[key(node)].refused
            assert audits.known.auditor(key(node)).most == 0
            assert (key(owner), SOUND) in [
                (author, body.outcome) for author, body in verdicts(owner) if body.subject == key(node)
            ]
        assert all(body.outcome == SOUND for _, body in verdicts(owner))

        await ask(18)
        first.ask_to_stop("in the middle of its audit")
        await until(lambda: audits.sessions.audited_sessions == 19, "the audit ends, whatever becomes of the node")
        assert audits.known.server(key(first)).most == 0
        assert not audits.known.is_avoided(key(first))
        await ask(19)
        await until(lambda: audits.sessions.audited_sessions == 20, "the next session is looked at as ever")
        assert audits.known.server(key(second)).most == 0
