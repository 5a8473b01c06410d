import anyio
import numpy as np
import pytest
from training.local_exchange import local_exchanges, peers, run_spec

from shoal.compression.presets import preset
from shoal.compression.update_codec import Values
from shoal.swarm.rounds.exchange import Exchange, Offer, Outcome, OutOfStep, RoundSkipped, RunSpec, seed_of

COUNT = 9000
STATE = bytes(32)


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    return virtual_time


def offer(spec: RunSpec, values: Values, round_: int = 0, tokens: int = 1, state: bytes = STATE) -> Offer:
    codec = preset(spec.preset)
    bounds = spec.sharding(0).bounds()
    payloads = tuple(codec.encode(values[a:b], seed_of(round_, 0, i)) for i, (a, b) in enumerate(bounds))
    return Offer(round_, 0, payloads, tokens, state)


def decoded(spec: RunSpec, outcome: Outcome) -> Values:
    codec = preset(spec.preset)
    bounds = spec.sharding(0).bounds()
    shards = zip(outcome.aggregates, bounds, strict=True)
    return np.concatenate(
        [codec.decode(d, b - a, seed_of(outcome.round, 0, i)) for i, (d, (a, b)) in enumerate(shards)]
    )


async def meet(exchanges: list[Exchange], offers: list[Offer]) -> list[Outcome | Exception]:
    answers: list[Outcome | Exception] = [RuntimeError("no answer")] * len(offers)

    async def one(index: int) -> None:
        try:
            answers[index] = await exchanges[index].exchange(offers[index])
        except (RoundSkipped, OutOfStep) as error:
            answers[index] = error

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for index in range(len(offers)):
                tasks.start_soon(one, index)
    return answers


@pytest.mark.anyio
async def test_every_peer_gets_the_same_bytes_and_they_are_the_weighted_mean() -> None:
    spec = run_spec([COUNT])
    _, exchanges = local_exchanges(spec, 3)
    answers = await meet(
        [*exchanges], [offer(spec, np.full(COUNT, i, np.float32), tokens=t) for i, t in ((0, 1), (1, 1), (4, 2))]
    )
    first = answers[0]
    assert isinstance(first, Outcome)
    assert answers[1] == answers[2] == first
    np.testing.assert_array_equal(decoded(spec, first), np.full(COUNT, 2.25, np.float32))
    assert first.contributors == tuple(zip(peers(3), (1, 1, 2), strict=True))


@pytest.mark.anyio
async def test_what_a_reducer_left_out_arrives_later() -> None:
    spec = run_spec([COUNT], preset="sparse")
    _, exchanges = local_exchanges(spec, 2)
    update = np.zeros(COUNT, np.float32)
    update[7] = 1.0
    total = np.zeros(COUNT, np.float32)
    for round_ in range(3):
        answers = await meet([*exchanges], [offer(spec, update, round_), offer(spec, -update, round_)])
        assert isinstance(answers[0], Outcome)
        total += decoded(spec, answers[0])
    np.testing.assert_allclose(total, 0, atol=1e-6)


@pytest.mark.anyio
async def test_a_peer_of_another_state_is_told_so_and_the_others_go_on() -> None:
    spec = run_spec([COUNT])
    _, exchanges = local_exchanges(spec, 3)
    values = np.ones(COUNT, np.float32)
    answers = await meet([*exchanges], [offer(spec, values), offer(spec, values, state=b"x" * 32), offer(spec, values)])
    assert isinstance(answers[1], OutOfStep)
    assert answers[1].holders == (peers(3)[0], peers(3)[2])
    assert isinstance(answers[0], Outcome)
    assert len(answers[0].contributors) == 2


@pytest.mark.anyio
async def test_a_round_without_quorum_is_skipped_and_one_that_is_over_is_refused() -> None:
    spec = run_spec([COUNT], quorum=2)
    group, exchanges = local_exchanges(spec, 3, skipped=[0])
    group.leave(peers(3)[2])
    values = np.ones(COUNT, np.float32)
    assert all(isinstance(a, RoundSkipped) for a in await meet([*exchanges], [offer(spec, values)] * 2))
    answers = await meet([*exchanges], [offer(spec, values, 1)] * 2)
    assert isinstance(answers[0], Outcome)
    assert await exchanges[0].exchange(offer(spec, values, 1)) == answers[0]  # whoever took part may ask again
    group.join(peers(3)[2])
    with pytest.raises(OutOfStep):
        await exchanges[2].exchange(offer(spec, values, 1))
    group.leave(peers(3)[2])
    group.leave(peers(3)[1])
    with pytest.raises(RoundSkipped):
        await exchanges[0].exchange(offer(spec, values, 2))


@pytest.mark.anyio
async def test_a_peer_that_leaves_is_no_longer_waited_for() -> None:
    spec = run_spec([COUNT])
    group, exchanges = local_exchanges(spec, 3)
    values = np.ones(COUNT, np.float32)

    async def leaves() -> None:
        await anyio.sleep(1)
        group.leave(peers(3)[2])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leaves)
            answers = await meet([*exchanges[:2]], [offer(spec, values), offer(spec, values)])
    assert isinstance(answers[0], Outcome)
    assert [peer for peer, _ in answers[0].contributors] == [*peers(2)]


@pytest.mark.anyio
async def test_payloads_that_do_not_fit_are_refused_before_anyone_waits() -> None:
    spec = run_spec([COUNT])
    _, exchanges = local_exchanges(spec, 2)
    good = offer(spec, np.ones(COUNT, np.float32))
    with pytest.raises(ValueError, match="payload"):
        await exchanges[0].exchange(Offer(0, 0, good.payloads[:1], 1, STATE))
    with pytest.raises(ValueError, match="payload"):
        await exchanges[0].exchange(Offer(0, 0, (b"nonsense", good.payloads[1]), 1, STATE))
