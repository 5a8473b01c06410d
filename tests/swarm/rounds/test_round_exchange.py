"""The shell of the outer round over the simulated network: streams, quorums, deaths, other runs, limits."""

from contextlib import AsyncExitStack

import anyio
import pytest
from swarm.rounds.round_peers import QUICK, Trainer, run_spec, trainer

from shoal.swarm.errors import DaemonDied, VersionMismatch
from shoal.swarm.identifiers import PeerId
from shoal.swarm.rounds.events import Job, JobResult, LiarNamed, RoundOptions, Status
from shoal.swarm.rounds.exchange import OutOfStep, RunSpec
from shoal.swarm.rounds.meeting import OpenMeeting
from shoal.swarm.rounds.simulated_trainer import tampered
from shoal.swarm.transports.memory import MemoryNetwork

NAMES = [PeerId(name) for name in ("alice", "bob", "carol", "dave", "erin")]


@pytest.fixture
def anyio_backend(virtual_time: tuple[str, dict[str, object]]) -> tuple[str, dict[str, object]]:
    return virtual_time


pytestmark = pytest.mark.anyio


async def seats(
    stack: AsyncExitStack, network: MemoryNetwork, meeting: OpenMeeting, count: int, spec: RunSpec, **changes: object
) -> list[Trainer]:
    return [
        await stack.enter_async_context(trainer(network.join(name), meeting, spec, **changes))  # type: ignore[arg-type]
        for name in NAMES[:count]
    ]


def assert_equal(trainers: list[Trainer]) -> None:
    assert len({one.state for one in trainers}) == 1
    assert len({one.round for one in trainers}) == 1


async def test_all_peers_end_with_the_same_bits_and_everybody_counted() -> None:
    with anyio.fail_after(120):
        async with MemoryNetwork(seed=1) as network, AsyncExitStack() as stack:
            peers = await seats(stack, network, OpenMeeting(), 4, run_spec(quorum=4))
            async with anyio.create_task_group() as tasks:
                for one in peers:
                    tasks.start_soon(one.train, 5)
            assert_equal(peers)
            for one in peers:
                assert [outcome.round for outcome in one.outcomes] == [0, 1, 2, 3, 4]
                for outcome in one.outcomes:
                    assert outcome.contributors == tuple((name, 1000) for name in NAMES[:4])
                assert one.parameters.any()


async def test_a_peer_that_dies_costs_no_round() -> None:
    with anyio.fail_after(300):
        async with MemoryNetwork(seed=2) as network, AsyncExitStack() as stack:
            peers = await seats(stack, network, OpenMeeting(), 4, run_spec(quorum=3))

            async def die(victim: Trainer) -> None:
                await victim.train(2)
                network.kill(victim.transport.me)
                await anyio.sleep(0.1)
                with pytest.raises(DaemonDied):
                    await victim.exchange.exchange(victim.offer())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(die, peers[1])
                for one in (peers[0], *peers[2:]):
                    tasks.start_soon(one.train, 6)
            rest = [peers[0], *peers[2:]]
            assert_equal(rest)
            assert [o.round for o in rest[0].outcomes] == list(range(6))
            assert len(rest[0].outcomes[-1].contributors) == 3


async def test_a_lonely_peer_waits_and_says_so_and_can_be_cancelled_and_asked_again() -> None:
    with anyio.fail_after(600):
        async with MemoryNetwork(seed=3) as network, AsyncExitStack() as stack:
            meeting = OpenMeeting()
            (alone,) = await seats(stack, network, meeting, 1, run_spec())
            with anyio.move_on_after(100.0) as waiting:
                await alone.train(1)
            assert waiting.cancelled_caught
            lines = [fact.text for fact in alone.facts if isinstance(fact, Status)]
            assert lines[-1] == "waiting for peers: 1 of at least 2 are ready"
            other = await stack.enter_async_context(trainer(network.join(NAMES[1]), meeting, run_spec()))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(alone.train, 2)
                tasks.start_soon(other.train, 2)
            assert_equal([alone, other])


async def test_peers_with_other_settings_are_told_what_differs() -> None:
    with anyio.fail_after(120):
        async with MemoryNetwork(seed=4) as network, AsyncExitStack() as stack:
            meeting = OpenMeeting()
            ours = [
                await stack.enter_async_context(trainer(network.join(name), meeting, run_spec())) for name in NAMES[:2]
            ]
            stray = await stack.enter_async_context(
                trainer(network.join(NAMES[2]), meeting, run_spec(preset="fp4", quorum=3))
            )
            async with anyio.create_task_group() as tasks:
                for one in (*ours, stray):
                    tasks.start_soon(one.train, 3)
            assert_equal(ours)
            assert not ours[0].errors
            (error,) = stray.errors
            assert isinstance(error, VersionMismatch)
            assert error.exit_code == 7
            assert "preset is fp4 here and sparse there" in str(error)
            assert "quorum is 3 here and 2 there" in str(error)


async def test_a_newcomer_is_in_step_after_one_round_and_votes_after_it() -> None:
    with anyio.fail_after(300):
        async with MemoryNetwork(seed=5) as network, AsyncExitStack() as stack:
            meeting = OpenMeeting()
            peers = await seats(stack, network, meeting, 3, run_spec())
            async with anyio.create_task_group() as tasks:
                for one in peers:
                    tasks.start_soon(one.train, 2)
            late = await stack.enter_async_context(trainer(network.join(NAMES[4]), meeting, run_spec(), first_round=2))
            late.parameters = peers[0].parameters.copy()
            everybody = [*peers, late]
            async with anyio.create_task_group() as tasks:
                for one in everybody:
                    tasks.start_soon(one.train, 5)
            assert_equal(everybody)
            assert (NAMES[4], 1000) in late.outcomes[-1].contributors


@pytest.mark.parametrize("killed", [1, 2])
async def test_peers_that_were_killed_and_come_back_at_once_hold_nobody_up(killed: int) -> None:
    """As other processes they have no vote, and those that had it are gone: nobody may wait for these.

    Whoever makes a quorum goes on, so one that comes back may find the run ahead of it; it is told so, to catch up.
    """
    with anyio.fail_after(300):
        async with MemoryNetwork(seed=9) as network, AsyncExitStack() as stack:
            meeting, spec = OpenMeeting(), run_spec()
            peers = await seats(stack, network, meeting, 3, spec)
            async with anyio.create_task_group() as tasks:
                for one in peers:
                    tasks.start_soon(one.train, 2)
            back = []
            for name in NAMES[3 - killed : 3]:
                network.kill(name)
                again = trainer(network.join(name), meeting, run_spec(), first_round=2)
                back.append(await stack.enter_async_context(again))
                back[-1].parameters = peers[0].parameters.copy()
            began = anyio.current_time()
            everybody = [*peers[: 3 - killed], *back]
            async with anyio.create_task_group() as tasks:
                for one in everybody:
                    tasks.start_soon(one.train, 4)
            behind = [one for one in back if one.errors]
            assert [type(one.errors[0]) for one in behind] == [OutOfStep] * len(behind)
            in_step = [one for one in everybody if one not in behind]
            assert_equal(in_step)
            assert in_step[0].round == 4
            assert len(in_step) >= run_spec().quorum
            assert not any(one.errors for one in in_step)
            assert anyio.current_time() - began < 30.0


async def test_a_peer_at_another_state_or_an_old_round_is_out_of_step() -> None:
    with anyio.fail_after(300):
        async with MemoryNetwork(seed=6) as network, AsyncExitStack() as stack:
            meeting = OpenMeeting()
            peers = await seats(stack, network, meeting, 3, run_spec())
            async with anyio.create_task_group() as tasks:
                for one in peers:
                    tasks.start_soon(one.train, 3)
            old = await stack.enter_async_context(trainer(network.join(NAMES[3]), meeting, run_spec()))
            wrong = await stack.enter_async_context(trainer(network.join(NAMES[4]), meeting, run_spec(), first_round=3))
            async with anyio.create_task_group() as tasks:
                for one in (*peers, old, wrong):
                    tasks.start_soon(one.train, 5)
            assert_equal(peers)
            for one in (old, wrong):
                (error,) = one.errors
                assert isinstance(error, OutOfStep)
                assert error.round >= 3
                assert set(error.holders) <= {peer.transport.me for peer in peers}
                assert error.holders


async def test_a_lying_owner_is_named_and_left_out() -> None:
    async def lie(job: Job) -> JobResult:
        return tampered(job, job.run())

    with anyio.fail_after(600):
        async with MemoryNetwork(seed=7) as network, AsyncExitStack() as stack:
            meeting, spec = OpenMeeting(), run_spec()
            thorough = RoundOptions(
                beat_s=0.2, resend_s=0.6, leader_silence_s=2.0, owner_silence_s=2.0, founding_s=0.5, audit_share=1.0
            )
            honest = [
                await stack.enter_async_context(trainer(network.join(name), meeting, spec, options=thorough))
                for name in NAMES[:4]
            ]
            liar = await stack.enter_async_context(
                trainer(network.join(NAMES[4]), meeting, run_spec(), options=thorough, run_job=lie)
            )

            async def train(one: Trainer) -> None:
                for rounds in range(1, 9):
                    await one.train(rounds)
                    await anyio.sleep(3.0)

            async with anyio.create_task_group() as tasks:
                for one in (*honest, liar):
                    tasks.start_soon(train, one)
            assert_equal(honest)
            named = {fact.peer for one in honest for fact in one.facts if isinstance(fact, LiarNamed)}
            assert named == {NAMES[4]}
            assert NAMES[4] not in dict(honest[0].outcomes[-1].contributors)
            assert "left out of the run" in str(liar.errors[-1])


async def test_every_byte_is_counted_and_goes_through_the_throttle() -> None:
    passed: list[int] = []

    async def slowly(payload_bytes: int) -> None:
        passed.append(payload_bytes)
        await anyio.sleep(payload_bytes / 50_000)

    with anyio.fail_after(300):
        async with MemoryNetwork(seed=8) as network, AsyncExitStack() as stack:
            meeting, spec = OpenMeeting(), run_spec()
            slow = await stack.enter_async_context(trainer(network.join(NAMES[0]), meeting, spec, throttle=slowly))
            other = await stack.enter_async_context(trainer(network.join(NAMES[1]), meeting, spec))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(slow.train, 3)
                tasks.start_soon(other.train, 3)
            assert_equal([slow, other])
            traffic, theirs = slow.exchange.traffic, other.exchange.traffic
            assert traffic.sent_bytes == sum(passed) + 5 * len(passed)
            assert traffic.sent_payload_bytes > 3 * 100
            assert 0 <= traffic.sent_bytes - theirs.received_bytes < 2000  # what was under way at the end
            wire = network.traffic(NAMES[0], NAMES[1])
            assert wire.payload_bytes >= sum(passed)


@pytest.mark.parametrize(
    "change",
    [
        {"payloads": ()},
        {"tokens": 0},
        {"state": b"short"},
        {"fragment": 1},
        {"round": -1},
        {"payloads": (b"x" * 100_000,) * 3},
    ],
)
async def test_an_offer_that_does_not_fit_is_the_callers_fault(change: dict[str, object]) -> None:
    from dataclasses import replace

    async with MemoryNetwork(seed=9) as network, AsyncExitStack() as stack:
        (one,) = await seats(stack, network, OpenMeeting(), 1, run_spec())
        with pytest.raises(ValueError, match=r"."):
            await one.exchange.exchange(replace(one.offer(), **change))


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"fragments": ()},
        {"shards": 0},
        {"quorum": 0},
        {"deadline_s": 0.0},
        {"robust": "median"},
        {"preset": "zip"},
        {"preset": "none", "fragments": (1 << 30,), "shards": 2},
    ],
)
def test_a_run_that_cannot_be_is_refused_at_once(change: dict[str, object]) -> None:
    from shoal.swarm.rounds.run_identity import checked_spec

    with pytest.raises(ValueError, match=r"."):
        checked_spec(run_spec(**change))


@pytest.mark.parametrize("preset", ["none", "fp4", "sparse"])
@pytest.mark.parametrize("values", [1, 8 << 20, 134_000_000, 7_000_000_000])
def test_the_usual_shards_fit_into_frames_and_are_finer_for_large_models(preset: str, values: int) -> None:
    from shoal.swarm.rounds.run_identity import checked_spec, usual_shards

    shards = usual_shards((values,), preset)
    checked_spec(run_spec(fragments=(values,), preset=preset, shards=shards))
    assert shards >= 16
    assert values < 100_000_000 or shards > 100


async def test_streamed_fragments_have_residuals_of_their_own() -> None:
    spec = run_spec(fragments=(4096, 2 * 4096), shards=2)
    with anyio.fail_after(300):
        async with MemoryNetwork(seed=10) as network, AsyncExitStack() as stack:
            peers = await seats(stack, network, OpenMeeting(), 3, spec, options=QUICK)
            async with anyio.create_task_group() as tasks:
                for one in peers:
                    tasks.start_soon(one.train, 6)
            assert_equal(peers)
            assert [(o.fragment, len(o.aggregates)) for o in peers[0].outcomes] == [(0, 1), (1, 2)] * 3
