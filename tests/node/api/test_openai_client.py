"""The official client against a real server."""

import math
from collections.abc import Iterator

import openai
import pytest
from live_gateway import KEY, WatchedSource, live_gateway
from novels_text import STORY, novels_model, repeats, scripted_model, scripted_novels, tells
from swarm.people import person

from shoal.swarm.errors import BadActivation, OutOfMemory, Refused, ShoalError, StreamBroken
from shoal.swarm.text.scripted_source import ScriptedSource

MODEL = "novels-6m"
TEXT = novels_model()
HI = [{"role": "user", "content": "Once upon a time"}]
ADA, BEN = person(1).peer_id, person(2).peer_id


def client_of(address: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=20)


@pytest.fixture(scope="module")
def source() -> ScriptedSource:
    return scripted_novels()


@pytest.fixture(scope="module")
def client(source: ScriptedSource) -> Iterator[openai.OpenAI]:
    with live_gateway(source) as address, client_of(address) as client:
        yield client


def test_models_are_listed_and_found_by_name_and_id(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "shoal")
    extra = client.models.retrieve(MODEL).model_extra
    assert extra is not None
    assert extra["max_model_len"] == 2048
    assert client.models.retrieve(extra["shoal"]["id"]).created == model.created


def test_a_completion_has_text_usage_and_route(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=100, temperature=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (STORY, "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(TEXT.encode("Once upon"))
    assert answer.usage.completion_tokens == len(TEXT.encode(STORY))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.object == "text_completion"
    assert answer.model_extra is not None
    assert answer.model_extra["shoal"]["route"]["hops"][0]["layers"] == "embed+0:8+head"


def test_sixteen_tokens_are_the_default_of_a_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once", temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert STORY.startswith(answer.choices[0].text)


def test_a_chat_may_fill_the_context() -> None:
    with live_gateway(scripted_novels(repeats(), max_context=50)) as address, client_of(address) as client:
        answer = client.chat.completions.create(model=MODEL, messages=HI)
        assert answer.usage is not None
        assert answer.usage.total_tokens == 50
        assert answer.choices[0].finish_reason == "length"
        limited = client.chat.completions.create(model=MODEL, messages=HI, max_completion_tokens=3)
        assert limited.usage is not None
        assert limited.usage.completion_tokens == 3


def test_a_chat_answers_as_the_assistant(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == STORY


def test_streamed_pieces_join_to_the_whole_and_end_with_usage_and_route(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt="x", max_tokens=100, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == STORY
    assert len(chunks) > 20
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(TEXT.encode(STORY))
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["shoal"]["route"]["hops"]


def test_a_streamed_chat_begins_with_the_role_and_never_splits_a_character(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=HI, temperature=0, stream=True))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert deltas[0].role == "assistant"
    parts = [delta.content or "" for delta in deltas]
    assert "".join(parts) == STORY
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["shoal"]["route"]["hops"]


def test_stop_strings_end_the_text_before_them_in_both_ways(client: openai.OpenAI) -> None:
    expected = STORY[: STORY.index("THE END")]
    for stop in ("THE END", ["THE END", "never said"]):
        whole = client.completions.create(model=MODEL, prompt="x", max_tokens=90, temperature=0, stop=stop)
        assert (whole.choices[0].text, whole.choices[0].finish_reason) == (expected, "stop")
        stream = client.completions.create(
            model=MODEL, prompt="x", max_tokens=90, temperature=0, stop=stop, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == expected


def test_old_log_probabilities_have_tokens_offsets_and_alternatives(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="x", max_tokens=100, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    assert logprobs.token_logprobs == [-0.5] * len(TEXT.encode(STORY))
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert token.startswith("bytes:\\x") or STORY[offset:].startswith(token)
    assert any(token.startswith("bytes:\\xf0") for token in logprobs.tokens)
    assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs)
    alone = client.completions.create(model=MODEL, prompt="x", logprobs=0, temperature=0).choices[0].logprobs
    assert alone is not None
    assert alone.top_logprobs is None


def test_chat_log_probabilities_have_bytes_that_join_to_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, temperature=0, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode() == STORY
    assert all(math.isclose(token.logprob, -0.5) and len(token.top_logprobs) == 3 for token in logprobs.content)


def test_the_same_seed_gives_the_same_text_and_choices_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    def texts(seed: int, n: int) -> list[str]:
        answer = client.completions.create(model=MODEL, prompt="x", seed=seed, n=n, max_tokens=8)
        return [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]

    assert texts(5, 1) == texts(5, 1)
    three = texts(5, 3)
    assert len(set(three)) == 3
    assert three == [texts(5 + copy, 1)[0] for copy in range(3)]


def test_streamed_choices_are_told_apart_by_index(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=HI, seed=1, n=3, max_tokens=8, stream=True))
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    whole = client.chat.completions.create(model=MODEL, messages=HI, seed=1, n=3, max_tokens=8)
    assert texts == [choice.message.content for choice in whole.choices]
    assert whole.model_extra is not None
    assert [each["seed"] for each in whole.model_extra["shoal"]["choices"]] == [1, 2, 3]
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(TEXT.encode("Once upon a time"))


def test_a_prompt_may_be_a_list_of_texts_or_of_ids(client: openai.OpenAI, source: ScriptedSource) -> None:
    def ids_of(prompt: object) -> list[tuple[int, ...]]:
        before = len(source.requests)
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=2, temperature=0)  # type: ignore[call-overload]
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return sorted(request.ids for request in source.requests[before:])

    assert ids_of(["a", "b"]) == sorted([TEXT.encode("a"), TEXT.encode("b")])
    assert ids_of([5, 6, 7]) == [(5, 6, 7)]
    assert ids_of([[5, 6], [7]]) == [(5, 6), (7,)]


def test_echo_repeats_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once", max_tokens=100, temperature=0, echo=True)
    assert answer.choices[0].text == "Once" + STORY
    stream = client.completions.create(
        model=MODEL, prompt=list(TEXT.encode("Once")), max_tokens=100, temperature=0, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == "Once" + STORY


def test_shoals_own_fields_reach_the_driver(client: openai.OpenAI, source: ScriptedSource) -> None:
    client.completions.create(
        model=MODEL,
        prompt="x",
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        top_p=0.9,
        extra_body={
            "top_k": -1,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "local_layers": 2,
            "max_hops": 3,
            "exclude": [ADA],
            "trust": [BEN],
            "stop_token_ids": [9],
            "something_new": {"ignored": True},
        },
    )
    request = source.requests[-1]
    assert (request.local_layers, request.max_hops, request.exclude, request.trust) == (2, 3, {ADA}, {BEN})
    assert request.stop_ids == {0, 9}
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (1.0, 0, 0.9, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, -0.5, 0.5)


@pytest.mark.parametrize(
    ("fault", "kind", "status", "code"),
    [
        (OutOfMemory("2 GB needed, 1 GB free"), openai.InternalServerError, 503, "out_of_memory"),
        (StreamBroken("gone"), openai.InternalServerError, 503, "stream_broken"),
        (Refused("revoked"), openai.PermissionDeniedError, 403, "refused"),
        (BadActivation("NaN"), openai.InternalServerError, 502, "bad_activation"),
        (ZeroDivisionError("a secret path"), openai.InternalServerError, 500, "internal_error"),
    ],
)
def test_an_error_before_the_first_piece_is_an_ordinary_status(
    fault: Exception, kind: type[openai.APIStatusError], status: int, code: str
) -> None:
    with live_gateway(scripted_novels(lambda _: [fault])) as address, client_of(address) as client:  # type: ignore[list-item]
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                client.completions.create(model=MODEL, prompt="x", n=2, stream=stream)
            assert (caught.value.status_code, caught.value.code) == (status, code)
            assert (str(fault) in caught.value.message) == isinstance(fault, ShoalError)


def test_an_error_in_mid_stream_is_an_event() -> None:
    source = scripted_novels(tells("It was a dark", StreamBroken("the last holder of layers 4:8 is gone")))
    with live_gateway(source) as address, client_of(address) as client:
        stream = client.chat.completions.create(model=MODEL, messages=HI, temperature=0, stream=True)
        heard: list[str] = []
        with pytest.raises(openai.APIError, match="layers 4:8") as caught:
            heard.extend(chunk.choices[0].delta.content or "" for chunk in stream)
        assert "".join(heard) == "It was a dark"
        assert caught.value.code == "stream_broken"
    assert source.open_sessions == 0


def test_a_model_with_a_gap_answers_503_and_names_the_layers() -> None:
    with live_gateway(scripted_novels(missing="layers 4:8, head")) as address, client_of(address) as client:
        with pytest.raises(openai.InternalServerError, match="layers 4:8, head") as caught:
            client.completions.create(model=MODEL, prompt="x")
        assert (caught.value.status_code, caught.value.code) == (503, "model_not_servable")
        assert client.models.retrieve(MODEL).id == MODEL


def test_an_unknown_model_answers_404_and_names_the_known(client: openai.OpenAI) -> None:
    for ask in (
        lambda: client.completions.create(model="gpt-9", prompt="x"),
        lambda: client.models.retrieve("org/gpt-9"),
    ):
        with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_wrong_key_answers_401(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_prompt_longer_than_the_context_answers_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="2048") as caught:
        client.completions.create(model=MODEL, prompt="a " * 5000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=HI, max_tokens=4000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_takes_its_sessions_with_it(stream: bool) -> None:
    source = WatchedSource([scripted_model(repeats())], step_s=0.01)
    with live_gateway(source) as address, client_of(address) as client:
        if stream:
            events = client.completions.create(model=MODEL, prompt="x", max_tokens=2000, n=2, stream=True)
            next(iter(events))
            assert source.wait_until(lambda: source.open_sessions == 2)
            events.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(model=MODEL, prompt="x", max_tokens=2000, n=2, timeout=0.3)
            assert len(source.streams) == 2
        assert source.wait_until(lambda: source.open_sessions == 0)
    assert all(session.finish_reason == "cancelled" for session in source.streams)
    assert all(session.given < 500 for session in source.streams)
