from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
import torch
from swarm.bundles import member
from training.local_exchange import peers
from training.tiny_run import tiny_config

from shoal.node.training.config import ConfigFile
from shoal.node.training.worker_agreement import Agreement
from shoal.node.training.worker_exchange import PATIENCE_S, AttentiveExchange
from shoal.node.training.worker_link import measured_uplink
from shoal.node.training.worker_parts import Prepared, settings_with
from shoal.node.training.worker_plan import planned, resolved, step_seconds
from shoal.node.training.worker_start import prepared
from shoal.swarm.errors import VersionMismatch
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.exchange import Offer, Outcome, OutOfStep, RoundSkipped
from shoal.swarm.routing.pings import serve_pings
from shoal.swarm.transports.memory import MemoryNetwork
from shoal.swarm.transports.memory_link import Conditions

ANA, BEN, CLEO = peers(3)
AUTO = {"name": "diloco", "interval": "auto", "preset": "auto"}


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    return virtual_time


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConfigFile, Prepared]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("plain")
    file = tiny_config(folder)
    return file, prepared(file, folder / "cache")


@pytest.fixture(scope="module")
def auto(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConfigFile, Prepared]:
    folder = tmp_path_factory.mktemp("auto")
    file = tiny_config(folder, strategy=AUTO)
    return file, prepared(file, folder / "cache")


def agreement(network: MemoryNetwork, peer: PeerId, meant: tuple[ConfigFile, Prepared]) -> Agreement:
    return Agreement(member(network.join(peer)), peer, *meant)


@pytest.mark.anyio
async def test_peers_of_one_config_agree_and_know_who_is_further(plain: tuple[ConfigFile, Prepared]) -> None:
    async with MemoryNetwork() as network:
        ana, ben, cleo = (agreement(network, peer, plain) for peer in (ANA, BEN, CLEO))
        for each, round_ in ((ana, 7), (ben, 9), (cleo, 9)):
            each.round = lambda round_=round_: round_  # type: ignore[misc]
            await each.serve()
        answers = await ana.ask([ANA, BEN, CLEO, PeerId("nobody")])
        assert sorted(answers) == [BEN, CLEO]
        assert not ana.heed(answers)
        missed = ana.behind(answers)
        assert missed is not None
        assert (missed.round, missed.holders) == (9, (BEN, CLEO))
        assert ben.behind(await ben.ask([ANA, CLEO])) is None


@pytest.mark.anyio
async def test_another_config_by_the_same_name_is_refused_and_named(
    plain: tuple[ConfigFile, Prepared], tmp_path: Path
) -> None:
    other = tiny_config(tmp_path, group={"quorum": 3})
    async with MemoryNetwork() as network:
        ana = agreement(network, ANA, plain)
        ben = agreement(network, BEN, (other, prepared(other, tmp_path / "cache")))
        await ben.serve()
        with pytest.raises(
            VersionMismatch, match=r"trains another run by the name 'tiny'.*quorum is 2 here and 3"
        ) as caught:
            ana.heed(await ana.ask([BEN]))
        assert caught.value.exit_code == 7


@pytest.mark.anyio
async def test_what_is_auto_is_taken_over_from_who_was_there_before(auto: tuple[ConfigFile, Prepared]) -> None:
    async with MemoryNetwork() as network:
        ana, ben = agreement(network, ANA, auto), agreement(network, BEN, auto)
        ben.settle(settings_with(ben.config, interval=60, preset="sparse"))
        ben.round = lambda: 4
        await ben.serve()
        ana.settle(settings_with(ana.config, interval=20, preset="fp4"))
        assert ana.heed(await ana.ask([BEN]))
        assert ana.spec == ben.spec
        assert (ana.config.strategy.interval, ana.spec.preset) == (60, "sparse")
        assert not ana.heed(await ana.ask([BEN]))


@pytest.mark.anyio
async def test_of_two_that_start_together_the_smaller_peer_decides(auto: tuple[ConfigFile, Prepared]) -> None:
    async with MemoryNetwork() as network:
        ana, ben = agreement(network, ANA, auto), agreement(network, BEN, auto)
        ana.settle(settings_with(ana.config, interval=20, preset="fp4"))
        ben.settle(settings_with(ben.config, interval=60, preset="sparse"))
        await ana.serve()
        await ben.serve()
        assert not ana.heed(await ana.ask([BEN]))
        assert ben.heed(await ben.ask([ANA]))
        assert ana.spec == ben.spec
        assert ben.spec.preset == "fp4"


@pytest.mark.anyio
async def test_the_uplink_is_measured_by_echoes(plain: tuple[ConfigFile, Prepared]) -> None:
    async with MemoryNetwork(conditions=Conditions(latency_s=(0.02, 0.03), bandwidth_byte_s=1.25e6)) as network:
        calls = {peer: member(network.join(peer)) for peer in (ANA, BEN, CLEO)}
        for each in calls.values():
            await serve_pings(each)
        found = await measured_uplink(calls[ANA], [BEN, CLEO])
        assert found is not None
        assert 4e6 < found <= 2.05e7  # two links of 10 Mbit/s, each way the same
        assert await measured_uplink(calls[ANA], []) is None
        network.kill(BEN)
        assert await measured_uplink(calls[ANA], [BEN]) is None


def test_a_plan_says_what_a_round_costs(plain: tuple[ConfigFile, Prepared]) -> None:
    file, ready = plain
    spec = Agreement(None, ANA, file, ready).spec  # type: ignore[arg-type]
    plan = planned(ready, file.config, spec, 1e6)
    assert plan.round_payload_bytes == pytest.approx(4 * ready.count, rel=0.01)
    assert plan.upload_bytes == plan.round_payload_bytes
    assert plan.exchange_s == pytest.approx(1 + 8 * plan.upload_bytes / 1e6)
    assert plan.tokens_per_round == 5 * 4 * 32
    assert planned(ready, file.config, spec, None).exchange_s is None


def test_auto_exchanges_less_often_and_less_on_a_slow_link(auto: tuple[ConfigFile, Prepared]) -> None:
    file, ready = auto
    fast, slow = (resolved(file, ready, 0.05, rate).strategy for rate in (1e8, 1e5))
    assert slow.interval > fast.interval
    assert (fast.preset, slow.preset) == ("none", "sparse")
    before = ready.parameters.read()
    assert 0 < step_seconds(ready) < 30
    assert (ready.parameters.read() == before).all()


OFFER = Offer(3, 0, (b"",), 1, bytes(32))


class Silent:
    """An exchange that answers after a while."""

    def __init__(self, after_s: float, answer: Outcome | Exception) -> None:
        self._after_s, self._answer = after_s, answer

    async def exchange(self, offer: Offer) -> Outcome:
        del offer
        await anyio.sleep(self._after_s)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def nobody() -> OutOfStep | None:
    return None


async def everybody() -> OutOfStep | None:
    return OutOfStep("they are at round 9", 9, [BEN])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("after_s", "alone", "behind", "expected"),
    [
        (100.0, True, everybody, OutOfStep),
        (100.0, True, nobody, Outcome),
        (100.0, False, everybody, Outcome),
        (PATIENCE_S / 2, True, everybody, Outcome),
    ],
)
async def test_a_round_that_the_others_have_had_is_not_waited_for(
    after_s: float, alone: bool, behind: Callable[[], Awaitable[OutOfStep | None]], expected: type
) -> None:
    outcome = Outcome(3, 0, (b"",), ((ANA, 1),))
    exchange = AttentiveExchange(Silent(after_s, outcome), lambda: alone, behind)
    found: Outcome | OutOfStep
    try:
        found = await exchange.exchange(OFFER)
    except OutOfStep as missed:
        found = missed
    assert isinstance(found, expected)


@pytest.mark.anyio
async def test_what_an_exchange_raises_comes_out_as_it_is() -> None:
    exchange = AttentiveExchange(Silent(1.0, RoundSkipped("no quorum")), lambda: True, nobody)
    with pytest.raises(RoundSkipped, match="no quorum"):
        await exchange.exchange(OFFER)
