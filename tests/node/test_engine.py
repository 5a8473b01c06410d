"""The engine as hops see it: what it refuses, what it computes, how it shares, and how it fails."""

import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import torch
from node.engine_chain import CPU, EngineChain, local_model
from node.tiny_models import VOCABULARY, greedy, make_model, save_model

from shoal.compression import activations
from shoal.node.engine import Engine
from shoal.node.engine_core import EngineCore
from shoal.node.model_source import LocalModel
from shoal.node.shard import Shard
from shoal.swarm.errors import BadActivation, ContextTooLong, LocalFault, OutOfMemory, Refused, ShoalError
from shoal.swarm.identifiers import SessionId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Done, Work
from shoal.swarm.units import Span

WHOLE, MIDDLE, END = Span(0, 6), Span(2, 4), Span(4, 6)
A, B = SessionId("a"), SessionId("b")
HIDDEN = 64
PROMPT = [(11 * i + 5) % VOCABULARY for i in range(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("engine")
    save_model(make_model("llama"), folder / "model")
    return local_model(folder / "model", folder / "cache")


@pytest.fixture(scope="module")
def shard(model: LocalModel) -> Shard:
    return Shard.load(model, WHOLE, "float32", CPU)


@pytest.fixture
def engine(shard: Shard) -> Iterator[Engine]:
    engine = Engine(shard, 1024, batch_tokens=16)
    yield engine
    engine.stop()


def open_session(engine: Engine, session: SessionId, span: Span = WHOLE, tokens: int = 64) -> Awaitable[None]:
    return engine.open(session, span, tokens, Sampling(), ())


def floats(count: int, value: float = 0.5, hidden: int = HIDDEN) -> bytes:
    body = torch.full((count, hidden), value).numpy().tobytes()
    return activations.pack("float32", count, hidden, body)


def refusal(engine: Engine, *steps: Callable[[], Awaitable[object]], kind: type[ShoalError] = Refused) -> str:
    """The message with which the last of some steps is refused."""

    async def run() -> str:
        for step in steps[:-1]:
            await step()
        with pytest.raises(kind) as caught:
            await steps[-1]()
        return str(caught.value)

    return anyio.run(run)


def test_a_work_has_to_continue_where_its_session_stands(engine: Engine) -> None:
    message = refusal(
        engine,
        lambda: open_session(engine, A),
        lambda: engine.run(Work(A, 0, 3, (1, 2, 3))),
        lambda: engine.run(Work(A, 4, 1, (4,))),
    )
    assert "1 positions from 4 on; 3 are held" in message


def test_a_session_has_to_be_open(engine: Engine) -> None:
    assert "no such session" in refusal(engine, lambda: engine.run(Work(A, 0, 1, (1,))))


def test_a_session_cannot_be_opened_twice(engine: Engine) -> None:
    assert "open already" in refusal(engine, lambda: open_session(engine, A), lambda: open_session(engine, A))


def test_a_token_outside_the_vocabulary_is_named(engine: Engine) -> None:
    message = refusal(engine, lambda: open_session(engine, A), lambda: engine.run(Work(A, 0, 2, (1, VOCABULARY))))
    assert f"token id {VOCABULARY}" in message


def test_more_positions_than_reserved_are_refused(engine: Engine) -> None:
    message = refusal(
        engine, lambda: open_session(engine, A, tokens=4), lambda: engine.run(Work(A, 0, 5, (1, 2, 3, 4, 5)))
    )
    assert "4 were reserved" in message


def test_more_tokens_than_the_context_are_refused(engine: Engine) -> None:
    message = refusal(engine, lambda: open_session(engine, A, tokens=257), kind=ContextTooLong)
    assert "257 tokens are more than the model's context of 256" in message


def test_nonsensical_sampling_is_refused(engine: Engine) -> None:
    opening = lambda: engine.open(A, WHOLE, 8, Sampling(top_p=1.5), ())  # noqa: E731
    assert "top_p" in refusal(engine, opening)


def test_a_span_that_is_not_held_is_refused(model: LocalModel) -> None:
    part = Engine(Shard.load(model, MIDDLE, "float32", CPU), 64)
    assert "embed+0:4+head is not hosted here" in refusal(part, lambda: open_session(part, A))
    part.stop()


def test_a_full_cache_refuses_and_serves_again_after_a_close(engine: Engine) -> None:
    names = [SessionId(f"s{n}") for n in range(5)]

    async def run() -> None:
        for name in names[:4]:
            await engine.open(name, WHOLE, 256, Sampling(), ())
        with pytest.raises(OutOfMemory, match="KV cache full: the session needs 256 tokens, 0 of 1024 are free"):
            await engine.open(names[4], WHOLE, 256, Sampling(), ())
        engine.close(names[1])
        await engine.open(names[4], WHOLE, 256, Sampling(), ())

    anyio.run(run)


@pytest.mark.parametrize(
    ("hidden", "count"),
    [
        (floats(2), 3),
        (floats(3, hidden=HIDDEN + 1), 3),
        (floats(3, math.nan), 3),
        (floats(3, math.inf), 3),
        (b"garbage", 3),
        (b"", 3),
        (floats(3)[:-4], 3),
    ],
)
def test_hidden_states_that_no_honest_peer_sends_are_refused(engine: Engine, hidden: bytes, count: int) -> None:
    refusal(
        engine,
        lambda: open_session(engine, A, MIDDLE),
        lambda: engine.run(Work(A, 0, count, hidden=hidden)),
        kind=BadActivation,
    )


def test_a_refused_work_leaves_its_session_as_it_was(engine: Engine) -> None:
    async def run() -> Done:
        await open_session(engine, A, MIDDLE)
        with pytest.raises(BadActivation):
            await engine.run(Work(A, 0, 2, hidden=floats(2, math.nan)))
        return await engine.run(Work(A, 0, 2, hidden=floats(2)))

    assert len(anyio.run(run).hidden) == 12 + 2 * HIDDEN * 4


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.02), ("float16", 0.003), ("int8", 0.05)])
def test_every_dtype_of_the_wire_is_accepted_and_can_be_sent(shard: Shard, dtype: str, error: float) -> None:
    exact, small = Engine(shard, 64), Engine(shard, 64, wire_dtype=dtype)

    async def step(engine: Engine, hidden: bytes) -> bytes:
        await open_session(engine, A, MIDDLE)
        done = await engine.run(Work(A, 0, 3, hidden=hidden))
        engine.close(A)
        return done.hidden

    sent = anyio.run(step, small, floats(3))
    assert activations.parse(sent, 3, HIDDEN).dtype == dtype
    received = anyio.run(step, exact, sent)
    expected = anyio.run(step, exact, anyio.run(step, exact, floats(3)))
    got, wanted = (torch.frombuffer(bytearray(data[12:]), dtype=torch.float32) for data in (received, expected))
    assert float((got - wanted).norm() / wanted.norm()) < error
    exact.stop()
    small.stop()


def test_a_long_prompt_lets_the_others_step_between_its_pieces(shard: Shard) -> None:
    core = EngineCore(shard, 1024, batch_tokens=16)
    finished: list[str] = []
    core.open(A, WHOLE, 200, Sampling(), ())
    core.open(B, WHOLE, 200, Sampling(), ())
    core.submit(Work(A, 0, 160, tuple(range(160)), wants_token=True), lambda *_: finished.append("prompt"))
    steps = 0
    while "prompt" not in finished:
        core.submit(Work(B, steps, 1, (steps,), wants_token=True), lambda *_: finished.append("step"))
        core.turn()
        steps += 1
        assert finished.count("step") == steps, "a decode step waited for more than one batch"
    assert steps >= 10


def test_sessions_of_different_spans_are_served_side_by_side(engine: Engine) -> None:
    async def run() -> None:
        await open_session(engine, A, WHOLE)
        await open_session(engine, B, MIDDLE)
        async with anyio.create_task_group() as tasks:
            for step in range(5):
                tasks.start_soon(engine.run, Work(A, step, 1, (step,), wants_token=True))
                tasks.start_soon(engine.run, Work(B, step, 1, hidden=floats(1)))
        assert engine.tokens_done == 10

    anyio.run(run)


def test_a_cancelled_work_leaves_the_queue_and_its_positions_are_forgotten(shard: Shard) -> None:
    core = EngineCore(shard, 1024, batch_tokens=8)
    answers: list[object] = []
    core.open(A, WHOLE, 100, Sampling(), ())
    key = core.submit(Work(A, 0, 60, tuple(range(60))), lambda *answer: answers.append(answer))
    core.turn()
    assert core.sessions[A].room.length == 8
    core.cancel(key)
    assert (core.sessions[A].room.length, core.queue_length) == (0, 0)
    core.submit(Work(A, 0, 1, (1,), wants_token=True), lambda *answer: answers.append(answer))
    core.turn()
    done = answers[-1]
    assert isinstance(done, tuple)
    assert isinstance(done[0], Done)


def test_cancelling_the_caller_cancels_its_queued_work(
    engine: Engine, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, computed = threading.Event(), shard.run

    def held_up(*given: Any) -> torch.Tensor:  # noqa: ANN401  as the shard's own
        assert gate.wait(10.0)
        return computed(*given)

    async def run() -> Done:
        await open_session(engine, A)
        monkeypatch.setattr(shard, "run", held_up)
        with anyio.move_on_after(0.0):
            await engine.run(Work(A, 0, 40, tuple(range(40))))
        gate.set()
        return await engine.run(Work(A, 0, 1, (7,), wants_token=True))

    assert anyio.run(run).choice is not None


def test_closing_a_session_that_waits_refuses_what_waits_and_frees_its_room(engine: Engine) -> None:
    free = engine.free_tokens

    async def run() -> None:
        await open_session(engine, A, tokens=200)
        async with anyio.create_task_group() as tasks:

            async def prompt() -> None:
                with pytest.raises(Refused, match="closed"):
                    await engine.run(Work(A, 0, 200, tuple(i % VOCABULARY for i in range(200))))

            tasks.start_soon(prompt)
            await anyio.lowlevel.checkpoint()
            engine.close(A)
        await open_session(engine, B, tokens=1)  # after the close in the same queue
        assert engine.free_tokens == free - 64
        assert engine.sessions == 1

    anyio.run(run)


def test_closing_an_unknown_session_does_no_harm(engine: Engine) -> None:
    engine.close(SessionId("nobody"))
    anyio.run(lambda: open_session(engine, A))


def poisoned(model: LocalModel) -> Shard:
    """Layers whose output is NaN."""
    shard = Shard.load(model, MIDDLE, "float32", CPU)
    shard.run = lambda _span, x, _plan, _rows: x * math.nan  # type: ignore[method-assign]
    return shard


def test_nan_out_of_finite_input_is_our_fault_and_names_the_layers(model: LocalModel) -> None:
    core = EngineCore(poisoned(model), 64)
    core.open(A, MIDDLE, 8, Sampling(), ())
    errors: list[ShoalError | None] = []
    core.submit(Work(A, 0, 1, hidden=floats(1)), lambda _, error: errors.append(error))
    core.turn()
    assert isinstance(errors[0], LocalFault)
    assert "1:3 produced NaN or infinity" in str(errors[0])
    assert core.sessions[A].room.length == 0


def test_an_error_in_a_batch_fails_its_works_and_the_engine_goes_on(model: LocalModel) -> None:
    shard = Shard.load(model, MIDDLE, "float32", CPU)
    run, failures = shard.run, iter([True, False])

    def run_or_fail(*arguments: object) -> torch.Tensor:
        if next(failures):
            raise ZeroDivisionError("a bug")
        return run(*arguments)  # type: ignore[arg-type]

    engine = Engine(shard, 64)
    shard.run = run_or_fail  # type: ignore[method-assign]

    async def go() -> None:
        await open_session(engine, A, MIDDLE)
        with pytest.raises(LocalFault, match=r"1:3 failed: ZeroDivisionError: a bug"):
            await engine.run(Work(A, 0, 1, hidden=floats(1)))
        await engine.run(Work(A, 0, 1, hidden=floats(1)))

    anyio.run(go)
    engine.stop()


def test_the_death_of_the_device_thread_is_told_to_all_who_wait_and_to_all_who_come(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(shard, 256)

    def die(_: EngineCore) -> bool:
        raise SystemError("the driver is gone")

    async def go() -> None:
        await open_session(engine, A)
        monkeypatch.setattr(EngineCore, "turn", die)
        for _ in range(2):
            with pytest.raises(LocalFault, match="the driver is gone"), anyio.fail_after(5):
                await engine.run(Work(A, 0, 1, (1,)))
        with pytest.raises(LocalFault), anyio.fail_after(5):
            await open_session(engine, B)

    anyio.run(go)


def test_an_idle_shard_that_was_slow_once_is_measured_again(shard: Shard) -> None:
    slow, fast = [0.0, 0.9] * 3 + [0.0, 3.2], [40.0, 40.002] * 3 + [40.0, 40.064] * 2
    clock = iter([*slow, 1.0, 20.0, 40.0, *fast, 41.0, 42.0])
    core = EngineCore(shard, 64, clock=lambda: next(clock))
    assert core.step_ms == pytest.approx(900.0)
    assert core.prefill_ms == pytest.approx(200.0), "16 positions of a prompt, where a step is so slow"
    core.measure_when_idle()
    assert core.step_ms == pytest.approx(900.0), "what was measured just now stands"
    core.measure_when_idle()
    assert core.step_ms == pytest.approx(2.0)
    assert core.prefill_ms == pytest.approx(1.0), "64 positions"


def test_stopping_fails_what_waits(shard: Shard) -> None:
    engine = Engine(shard, 512, batch_tokens=8)

    async def go() -> None:
        await open_session(engine, A, tokens=200)
        async with anyio.create_task_group() as tasks:

            async def prompt() -> None:
                with pytest.raises(LocalFault, match="stopped"):
                    await engine.run(Work(A, 0, 200, tuple(i % VOCABULARY for i in range(200))))

            tasks.start_soon(prompt)
            await anyio.lowlevel.checkpoint()
            engine.stop()
        with pytest.raises(LocalFault, match="stopped"):
            await open_session(engine, B)

    anyio.run(go)
    engine.stop()


def test_the_engine_serves_a_uvloop(engine: Engine) -> None:
    async def go() -> Done:
        await open_session(engine, A)
        return await engine.run(Work(A, 0, 3, (1, 2, 3), wants_token=True))

    assert anyio.run(go, backend_options={"use_uvloop": True}).choice is not None


def test_a_sampled_session_says_the_same_alone_in_company_and_after_a_replay(model: LocalModel) -> None:
    sampling = Sampling(temperature=1.1, top_p=0.9, repetition_penalty=1.3, frequency_penalty=0.2, seed=77)
    with EngineChain(model, cuts=(), batch_tokens=16) as chain:

        async def alone() -> list[int]:
            return [choice.id for choice in await chain.generate("alone", PROMPT, 16, sampling)]

        async def in_company() -> list[int]:
            result: list[int] = []

            async def one() -> None:
                result.extend(choice.id for choice in await chain.generate("one", PROMPT, 16, sampling))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one)
                for other in range(3):
                    tasks.start_soon(chain.generate, f"other {other}", PROMPT[other:], 20, Sampling(1.0, seed=other))
            return result

        async def replayed(first: list[int]) -> list[int]:
            rest = await chain.generate("again", [*PROMPT, *first], 16 - len(first), sampling)
            return [*first, *(choice.id for choice in rest)]

        expected = anyio.run(alone)
        assert len(set(expected)) > 5
        assert anyio.run(in_company) == expected
        assert anyio.run(replayed, expected[:6]) == expected


def test_the_record_has_its_numbers(engine: Engine) -> None:
    assert engine.step_ms > 0.0
    assert (engine.sessions, engine.queue_length, engine.tokens_done) == (0, 0, 0)
    assert engine.free_tokens == 1024


def test_waiting_and_computing_times_are_told(engine: Engine) -> None:
    async def go() -> Done:
        await open_session(engine, A)
        return await engine.run(Work(A, 0, 40, tuple(range(40)), wants_token=True))

    done = anyio.run(go)
    assert done.compute_s > 0.0
    assert done.queue_s >= 0.0


def test_scattered_pages_give_the_same_tokens_as_one_run(model: LocalModel) -> None:
    expected = greedy(make_model("llama"), PROMPT, 60)
    with EngineChain(model, cuts=(3,), kv_tokens=6 * 64) as chain:

        async def go() -> list[int]:
            for engine, span in zip(chain.engines, chain.spans, strict=True):
                for number in range(6):
                    await engine.open(SessionId(f"filler {number}"), span, 64, Sampling(), ())
                for number in range(0, 6, 2):
                    engine.close(SessionId(f"filler {number}"))
            return [choice.id for choice in await chain.generate("scattered", PROMPT, 60)]

        assert anyio.run(go) == expected
