import anyio
import pytest
from novels_text import STORY, novels_files, novels_manifest, repeats, scripted_novels, tells

from shoal.swarm.errors import ContextTooLong, ModelNotServable, ShoalError, StreamBroken, Unavailable, UsageError
from shoal.swarm.identifiers import ModelId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import ServedModel
from shoal.swarm.text.model_choice import NoModelNamed, UnknownModel, choose_model, public_names
from shoal.swarm.text.scripted_source import ScriptedModel, ScriptedSource
from shoal.swarm.text.text_request import TextRequest
from shoal.swarm.text.text_source import TextSource, room


def run(source: ScriptedSource, request: TextRequest) -> tuple[str, str | None, int, int]:
    async def main() -> tuple[str, str | None, int, int]:
        texts = TextSource(source)
        async with texts.generate(await texts.prepare(request)) as stream:
            text = "".join([piece.text async for piece in stream])
        usage = stream.usage
        return text, stream.finish_reason, usage.prompt_tokens, usage.completion_tokens

    return anyio.run(main)


def test_a_prompt_is_continued_until_the_script_ends() -> None:
    text, reason, prompt_tokens, tokens = run(scripted_novels(), TextRequest(prompt="Once", max_tokens=200))
    assert (text, reason) == (STORY, "stop")
    assert prompt_tokens == 2
    assert tokens > 20


def test_a_stop_string_ends_the_session_early() -> None:
    source = scripted_novels(tells(STORY + STORY))
    text, reason, _, tokens = run(source, TextRequest(prompt="Once", stop=("night",)))
    assert (text, reason) == ("It was a dark and stormy ", "stop")
    assert source.open_sessions == 0
    assert source.streams[0].given == tokens < 12
    assert source.streams[0].finish_reason == "cancelled"


def test_without_a_limit_the_context_is_the_limit() -> None:
    source = scripted_novels(repeats(), max_context=64)
    _, reason, prompt_tokens, tokens = run(source, TextRequest(prompt="Once upon"))
    assert (reason, prompt_tokens + tokens) == ("length", 64)


def test_end_of_text_is_the_models_and_may_be_ignored() -> None:
    def script(_: object) -> list[int]:
        return [40, 0, 40]

    assert run(scripted_novels(script), TextRequest(prompt="x"))[3] == 1
    assert run(scripted_novels(script), TextRequest(prompt="x", ignore_eos=True))[3] == 3
    assert run(scripted_novels(script), TextRequest(prompt="x", stop_ids=frozenset({40})))[3] == 0


def test_a_session_that_breaks_says_why() -> None:
    with pytest.raises(StreamBroken, match="gone"):
        run(scripted_novels(tells("It was", StreamBroken("gone"))), TextRequest(prompt="x"))


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (TextRequest(), UsageError, "either a prompt or messages"),
        (TextRequest(prompt="a", messages=({"role": "user", "content": "a"},)), UsageError, "either a prompt"),
        (TextRequest(prompt=""), UsageError, "must not be empty"),
        (TextRequest(prompt=()), UsageError, "must not be empty"),
        (TextRequest(messages=()), UsageError, "must not be empty"),
        (TextRequest(prompt=(4096,)), UsageError, "out of range"),
        (TextRequest(prompt="a", stop=("",)), UsageError, "stop takes up to 16"),
        (TextRequest(prompt="a", stop=("x",) * 17), UsageError, "stop takes up to 16"),
        (TextRequest(prompt="a", max_tokens=0), UsageError, "max_tokens"),
        (TextRequest(prompt="a", max_tokens=5000), ContextTooLong, "2048"),
        (TextRequest(prompt=(3,) * 2048), ContextTooLong, "2048 tokens"),
        (TextRequest(prompt="a " * 9000), ContextTooLong, "context 2048"),
        (TextRequest(prompt="a", sampling=Sampling(top_p=0.0)), UsageError, "top_p"),
        (TextRequest(prompt="a", model="gpt-9"), UnknownModel, "novels-6m"),
    ],
)
def test_every_fault_of_a_request_is_found_before_a_session_opens(
    request_: TextRequest, error: type[ShoalError], words: str
) -> None:
    source = scripted_novels()
    with pytest.raises(error, match=words):
        run(source, request_)
    assert source.requests == []


def test_a_model_with_missing_layers_is_not_servable_and_names_them() -> None:
    with pytest.raises(ModelNotServable, match="layers 4:8, head"):
        run(scripted_novels(missing="layers 4:8, head"), TextRequest(prompt="a"))


def test_concurrent_callers_read_a_tokenizer_once() -> None:
    reads = 0

    class Counting(ScriptedSource):
        async def text_files(self, model: ModelId) -> dict[str, bytes]:
            nonlocal reads
            reads += 1
            await anyio.lowlevel.checkpoint()
            return await super().text_files(model)

    source = Counting([ScriptedModel(novels_manifest(), novels_files(), repeats())])

    async def main() -> None:
        texts = TextSource(source)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(texts.prepare, TextRequest(prompt="a"))

    anyio.run(main)
    assert reads == 1


def test_a_tokenizer_that_could_not_be_fetched_is_asked_for_again() -> None:
    class Flaky(ScriptedSource):
        failed = False

        async def text_files(self, model: ModelId) -> dict[str, bytes]:
            if not self.failed:
                self.failed = True
                raise Unavailable("no peer answered")
            return await super().text_files(model)

    async def main() -> None:
        texts = TextSource(Flaky([ScriptedModel(novels_manifest(), novels_files(), repeats())]))
        with pytest.raises(Unavailable):
            await texts.prepare(TextRequest(prompt="a"))
        await texts.prepare(TextRequest(prompt="a"))

    anyio.run(main)


def served(name: str, digit: str, missing: str = "", holders: int = 1) -> ServedModel:
    return ServedModel(ModelId(digit * 64), name, 8, 2048, ("float32",), holders, missing)


def test_the_only_servable_model_needs_no_name() -> None:
    models = [served("a", "1", missing="head"), served("b", "2")]
    assert choose_model(models, None).name == "b"
    with pytest.raises(NoModelNamed, match="a, b, c"):
        choose_model([*models, served("c", "3")], None)
    with pytest.raises(NoModelNamed, match="none yet"):
        choose_model([], None)


def test_two_models_of_one_name_are_told_apart_by_id() -> None:
    models = [served("a", "1", missing="head", holders=9), served("a", "2"), served("a", "3", holders=2)]
    names = public_names(models)
    assert names["a"].id == "3" * 64
    assert set(names) == {"a", "1" * 64, "2" * 64}
    assert choose_model(models, "2" * 64).id == "2" * 64
    assert choose_model(models, "3" * 64).id == "3" * 64


def test_room_is_what_is_left_of_the_context() -> None:
    assert room(10, None, 16) == 6
    assert room(10, 6, 16) == 6
    with pytest.raises(ContextTooLong):
        room(10, 7, 16)
