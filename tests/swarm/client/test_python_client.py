"""The same questions over HTTP and in-process, sync and async: the answers are the same values."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import asdict
from functools import partial

import anyio
import pytest
from live_gateway import KEY, WatchedSource, live_gateway
from novels_text import STORY, novels_model, repeats, scripted_model, scripted_novels, tells
from swarm.people import person

import shoal
from shoal.swarm.client.async_client import AsyncClient
from shoal.swarm.client.backend import Backend
from shoal.swarm.client.http_backend import HttpBackend
from shoal.swarm.client.source_backend import SourceBackend
from shoal.swarm.client.sync_client import Client
from shoal.swarm.errors import OutOfMemory, Refused, ShoalError, StreamBroken, UsageError
from shoal.swarm.text.scripted_source import ScriptedSource

TEXT = novels_model()
HI = [{"role": "user", "content": "Once upon a time"}]
ADA, BEN, CLEO = (person(number).peer_id for number in (1, 2, 3))
Open = Callable[[], AbstractAsyncContextManager[Backend]]


@contextmanager
def opened(way: str, source: ScriptedSource) -> Iterator[Open]:
    if way == "http":
        with live_gateway(source) as address:
            yield partial(HttpBackend, address, KEY)
    else:
        yield partial(SourceBackend, source)


@pytest.fixture(params=["http", "source"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def both(source: ScriptedSource, ask: Callable[[Client], shoal.Result]) -> tuple[shoal.Result, shoal.Result]:
    answers = []
    for way in ("http", "source"):
        with opened(way, source) as open_backend, Client(open_backend) as client:
            answers.append(ask(client))
    return answers[0], answers[1]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.generate("Once upon"),
        lambda client: client.generate(HI, max_tokens=7),
        lambda client: client.generate([5, 6, 7], max_tokens=None),
        lambda client: client.generate("Once", stop=["THE END", "never"]),
        lambda client: client.generate("Once", temperature=0.8, seed=11, max_tokens=9, top_p=0.9, top_k=50),
        lambda client: client.generate("Once", logprobs=2),
        lambda client: client.generate(HI, logprobs=0, temperature=1.0, seed=3, max_tokens=12),
        lambda client: client.generate("Once", model="novels-6m", stop_ids=[40], ignore_eos=True),
    ],
)
def test_http_and_in_process_give_the_same_result(ask: Callable[[Client], shoal.Result]) -> None:
    over_http, in_process = both(scripted_novels(), ask)
    assert over_http == in_process


def test_a_result_tells_text_ids_usage_route_and_seed(way: str) -> None:
    with opened(way, scripted_novels()) as open_backend, Client(open_backend) as client:
        result = client.generate("Once upon", seed=5)
    assert str(result) == result.text == STORY
    assert result.ids == TEXT.encode(STORY)
    assert (result.finish_reason, result.seed, result.model) == ("stop", 5, "novels-6m")
    assert asdict(result.route)["hops"][0]["layers"] == "embed+0:8+head"
    assert result.usage == shoal.Usage(len(TEXT.encode("Once upon")), len(result.ids))
    assert result.usage.total_tokens == result.usage.prompt_tokens + result.usage.completion_tokens


def test_pieces_are_streamed_and_the_result_comes_with_the_last(way: str) -> None:
    with opened(way, scripted_novels()) as open_backend, Client(open_backend) as client:
        stream = client.stream("Once", logprobs=1)
        with pytest.raises(shoal.UsageError, match="no result yet"):
            _ = stream.result
        pieces = list(stream)
        assert "".join(piece.text for piece in pieces) == STORY == stream.result.text
        assert len(pieces) > 20
        assert all(len(piece.logprobs) == len(piece.ids) for piece in pieces)
        joined = b"".join(token.bytes for token in stream.result.logprobs)
        assert joined.decode() == STORY
        assert list(stream) == []


def test_every_option_reaches_the_driver_the_same_way() -> None:
    source = scripted_novels()
    options = {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.25,
        "seed": 9,
        "stop_ids": [8, 7],
        "ignore_eos": True,
        "logprobs": 2,
        "local_layers": 1,
        "max_hops": 5,
        "exclude": [ADA, BEN],
        "trust": [CLEO],
        "prefill": CLEO,
    }
    for prompt in ("Once", HI):
        both(source, lambda client, prompt=prompt: client.generate(prompt, **options))  # type: ignore[misc]
        first, second = source.requests[-2:]
        assert first == second
        assert first.sampling.top_logprobs == 2
        assert first.exclude == {ADA, BEN}
        assert first.prefill == CLEO
        assert first.stop_ids == {7, 8}


@pytest.mark.parametrize(
    "options", [{"exclude": ["x"]}, {"exclude": ADA}, {"trust": ["x"]}, {"trust": []}, {"prefill": "x"}]
)
def test_peers_that_are_none_are_refused_and_an_empty_trust_too(options: dict[str, object]) -> None:
    with (
        Client(partial(SourceBackend, scripted_novels())) as client,
        pytest.raises(UsageError, match=next(iter(options))),
    ):
        client.generate("Once", **options)  # type: ignore[arg-type]


def test_models_are_the_swarms(way: str) -> None:
    source = scripted_novels(missing="head")
    with opened(way, source) as open_backend, Client(open_backend) as client:
        assert client.models() == anyio.run(source.models)
        assert isinstance(client.models()[0], shoal.ServedModel)


@pytest.mark.parametrize(
    ("script", "options", "error", "words"),
    [
        ([StreamBroken("layers 4:8 are gone")], {}, shoal.StreamBroken, "layers 4:8"),
        ([40, 40, OutOfMemory("2 GB needed")], {}, shoal.OutOfMemory, "2 GB"),
        ([Refused("revoked")], {}, shoal.Refused, "revoked"),
        ([], {"model": "gpt-9"}, shoal.UnknownModel, "novels-6m"),
        ([], {"max_tokens": 4000}, shoal.ContextTooLong, "2048"),
        ([], {"max_tokens": 0}, shoal.UsageError, "max_tokens"),
        ([], {"top_p": 0.0}, shoal.UsageError, "top_p"),
        ([], {"stop": [""]}, shoal.UsageError, "stop"),
    ],
)
def test_errors_keep_their_class_and_words(
    way: str, script: list[int | Exception], options: dict[str, object], error: type[ShoalError], words: str
) -> None:
    source = scripted_novels(lambda _: script)
    with (
        opened(way, source) as open_backend,
        Client(open_backend) as client,
        pytest.raises(error, match=words) as caught,
    ):
        client.generate("Once", **options)  # type: ignore[arg-type]
    assert type(caught.value) is error
    assert source.open_sessions == 0


def test_a_model_with_a_gap_is_not_servable(way: str) -> None:
    with (
        opened(way, scripted_novels(missing="layers 4:8, head")) as open_backend,
        Client(open_backend) as client,
        pytest.raises(shoal.ModelNotServable, match="layers 4:8, head"),
    ):
        client.generate("Once")


@pytest.mark.parametrize("prompt", ["", [], [3, "x"], [3, {"role": "user"}], [1.5], [{"role": "user", "content": {1}}]])
def test_a_prompt_that_is_none_is_refused(way: str, prompt: object) -> None:
    with (
        opened(way, scripted_novels()) as open_backend,
        Client(open_backend) as client,
        pytest.raises(shoal.UsageError),
    ):
        client.generate(prompt)  # type: ignore[arg-type]


def test_an_unknown_option_is_a_type_error(way: str) -> None:
    with opened(way, scripted_novels()) as open_backend, Client(open_backend) as client, pytest.raises(TypeError):
        client.generate("x", temprature=1.0)  # type: ignore[call-arg]


def test_leaving_a_stream_cancels_its_session(way: str) -> None:
    source = WatchedSource([scripted_model(repeats())], step_s=0.01)
    with opened(way, source) as open_backend, Client(open_backend) as client:
        with client.stream("Once", max_tokens=2000) as stream:
            next(stream)
            assert source.open_sessions == 1
        assert source.wait_until(lambda: source.open_sessions == 0)
        assert source.streams[0].given < 500
        assert list(stream) == []


def test_closing_the_client_cancels_what_was_left_running_and_ends_its_thread(way: str) -> None:
    source = WatchedSource([scripted_model(repeats())], step_s=0.01)
    with opened(way, source) as open_backend:
        before = set(threading.enumerate())
        client = Client(open_backend)
        for _ in client.stream("Once", max_tokens=2000):
            break
        client.close()
        client.close()
        assert source.wait_until(lambda: source.open_sessions == 0)
        left = [thread for thread in set(threading.enumerate()) - before if "AnyIO worker" not in thread.name]
        assert left == []
        with pytest.raises(shoal.UsageError, match="closed"):
            client.generate("x")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_async_client_streams_and_generates_concurrently(way: str, backend: str) -> None:
    async def main(open_backend: Open) -> None:
        async with AsyncClient(open_backend) as client:
            assert (await client.models())[0].name == "novels-6m"
            results: list[shoal.Result] = []

            async def ask(seed: int) -> None:
                results.append(await client.generate("x", temperature=1.0, seed=seed, max_tokens=20))

            async with anyio.create_task_group() as group:
                for seed in range(8):
                    group.start_soon(ask, seed)
            assert len({result.text for result in results}) == 8
            async with client.stream(HI) as stream:
                text = "".join([piece.text async for piece in stream])
            assert text == STORY == stream.result.text

    with opened(way, scripted_novels()) as open_backend:
        anyio.run(main, open_backend, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelling_the_reader_cancels_the_session(way: str, backend: str) -> None:
    source = WatchedSource([scripted_model(repeats())], step_s=0.01)

    async def main(open_backend: Open) -> None:
        async with AsyncClient(open_backend) as client:
            with anyio.move_on_after(0.3) as scope:
                await client.generate("Once", max_tokens=2000)
            assert scope.cancelled_caught
            assert await anyio.to_thread.run_sync(source.wait_until, lambda: source.open_sessions == 0)

    with opened(way, source) as open_backend:
        anyio.run(main, open_backend, backend=backend)


def test_a_client_may_be_awaited_instead_of_entered() -> None:
    async def main(address: str) -> str:
        client = await shoal.aconnect(address, api_key=KEY, model="novels-6m")
        try:
            return (await client.generate("x")).text
        finally:
            await client.aclose()

    with live_gateway(scripted_novels(tells("and so on"))) as address:
        assert anyio.run(main, address) == "and so on"


def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(shoal.UsageError, match="async with"):
        anyio.run(shoal.aconnect("http://127.0.0.1:1").models)


def test_an_error_of_the_caller_passes_through_the_client_as_it_is(way: str) -> None:
    async def main(open_backend: Open) -> None:
        async with open_backend() as backend, AsyncClient(open_backend) as client:
            await client.generate("x", max_tokens=1)
            await backend.models()
            raise ZeroDivisionError

    with opened(way, scripted_novels()) as open_backend, pytest.raises(ZeroDivisionError):
        anyio.run(main, open_backend)
