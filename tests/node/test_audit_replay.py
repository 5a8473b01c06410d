"""Chunks of real sessions, computed again by another engine of the class: honest ones pass, cheats do not."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import anyio
import msgspec
import pytest
import torch
from node.engine_chain import CPU, local_model
from node.tiny_models import VOCABULARY, make_model, save_model

from shoal.incentives import audit_draw
from shoal.incentives.audit_evidence import ChunkEvidence, Unproven, of_chunk
from shoal.incentives.audit_threshold import Finding, Threshold, rounding_floor
from shoal.incentives.work_chunks import CHUNK_POSITIONS, Chunk, ChunkCutter
from shoal.incentives.work_statement import Served, WorkLeaves
from shoal.node.audit_replay import Replayed, distance, replay
from shoal.node.engine import Engine
from shoal.node.model_source import LocalModel
from shoal.node.shard import Shard
from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import SessionId
from shoal.swarm.identity import Identity
from shoal.swarm.sampling import Sampling, encoded
from shoal.swarm.sessions.compute import Work
from shoal.swarm.units import Span

SERVER = Identity(bytes([21]) * 32)
WHOLE, FRONT, MIDDLE = Span(0, 6), Span(0, 3), Span(2, 4)
IDS = tuple((11 * i + 5) % VOCABULARY for i in range(80))
LIMIT = Threshold(rounding_floor("float32", "float32"), 1000, 0.0)
Change = Callable[[Chunk], Chunk]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("audits")
    save_model(make_model("llama"), folder / "model")
    return local_model(folder / "model", folder / "cache")


@pytest.fixture(scope="module")
def server(model: LocalModel) -> Iterator[Engine]:
    engine = Engine(Shard.load(model, WHOLE, "float32", CPU), 1024)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def auditor(model: LocalModel) -> Iterator[Engine]:
    engine = Engine(Shard.load(model, WHOLE, "float32", CPU), 1024, batch_tokens=24)
    yield engine
    engine.stop()


def test_a_short_chunk_is_no_further_away_than_the_whole_of_which_it_is_a_part() -> None:
    draw = torch.Generator().manual_seed(3)
    before, again = torch.zeros(CHUNK_POSITIONS, 64), torch.randn((CHUNK_POSITIONS, 64), generator=draw)
    scattered = 1e-6 * torch.rand((CHUNK_POSITIONS, 1), generator=draw) * torch.randn(again.shape, generator=draw)
    whole = distance(again + scattered, again, before)
    parts = [distance(again[a:b] + scattered[a:b], again[a:b], before[a:b]) for a in range(32) for b in (a + 1, 32)]
    assert 0 < max(parts) <= whole
    one = slice(0, 1)
    assert LIMIT.finding(distance(-again[one], again[one], before[one])) is Finding.GROSS, "one position is enough"


async def _session(engine: Engine, span: Span, sampling: Sampling, prompt: int = 40) -> list[Chunk]:
    """A prompt at once, then a position at a time, as a hop logs it."""
    name, cutter, chunks = SessionId(f"served {span} {sampling.seed}"), ChunkCutter(), []
    body, head = Span(span.start, min(span.stop, 5)), SessionId("head")
    await engine.open(name, body, len(IDS), sampling, ())
    await engine.open(SessionId("before"), Span(0, max(1, span.start)), len(IDS), sampling, ())
    if span.stop == 6:
        await engine.open(head, Span(5, 6), len(IDS), sampling, ())
    edges = [0, *range(prompt, len(IDS) + 1)]
    for start, stop in pairwise(edges):
        count, ids, hidden = stop - start, IDS[start:stop], b""
        if span.start:
            hidden = (await engine.run(Work(SessionId("before"), start, count, ids))).hidden
            ids = ()
        made = (await engine.run(Work(name, start, count, ids, hidden))).hidden
        tokens: tuple[int, ...] = ()
        if span.stop == 6:
            choice = (await engine.run(Work(head, start, count, (), made, wants_token=True))).choice
            assert choice is not None
            tokens = (0,) * (count - 1) + (choice.id + 1,)
        chunks += cutter.add(count, ids, hidden, made, tokens)
    last = cutter.finish()
    for each in (name, SessionId("before"), head):
        engine.close(each)
    return [*chunks, last] if last else chunks


def evidence(
    engine: Engine, span: Span, index: int, change: Change | None = None, sampling: Sampling | None = None
) -> ChunkEvidence:
    chosen = sampling or Sampling()
    chunks = anyio.run(_session, engine, span, chosen)
    if change:
        chunks[index] = change(chunks[index])
    leaves = WorkLeaves()
    for chunk in chunks:
        leaves.add(chunk)
    packed = encoded(chosen) if span.stop == 6 else b""
    served = Served(bytes(32), "float32", "float32", span)
    statement = leaves.statement(SERVER, b"s", served, audit_draw.commitment(bytes(32)), packed)
    return of_chunk(statement, leaves, chunks, index)


def audited(engine: Engine, shown: ChunkEvidence) -> Replayed:
    return anyio.run(replay, engine, shown)


def made(chunk: Chunk, **fields: object) -> Chunk:
    return msgspec.structs.replace(chunk, made=msgspec.structs.replace(chunk.made, **fields))


@pytest.mark.parametrize("span", [Span(0, 1), FRONT, MIDDLE, Span(3, 6), WHOLE], ids=str)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_honest_work_of_any_span_is_found_sound(server: Engine, auditor: Engine, span: Span, index: int) -> None:
    found = audited(auditor, evidence(server, span, index))
    assert found.finding(LIMIT) is Finding.SOUND, found
    assert found.wrong_tokens == 0


def test_sampled_tokens_are_drawn_again(server: Engine, auditor: Engine) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=5)
    found = audited(auditor, evidence(server, Span(3, 6), 1, sampling=sampling))
    assert found == Replayed(found.distance, 0, 25)
    assert found.finding(LIMIT) is Finding.SOUND


def test_garbage_tokens_behind_honest_layers_are_found(server: Engine, auditor: Engine) -> None:
    shown = evidence(server, WHOLE, 1, lambda chunk: made(chunk, tokens=tuple(7 * (t > 0) for t in chunk.made.tokens)))
    found = audited(auditor, shown)
    assert found.distance <= LIMIT.limit
    assert found.finding(LIMIT) is Finding.GROSS


def test_tokens_drawn_with_another_seed_are_found(server: Engine, auditor: Engine) -> None:
    honest = evidence(server, Span(3, 6), 1, sampling=Sampling(temperature=1.5, seed=6))
    shown = evidence(
        server,
        Span(3, 6),
        1,
        lambda chunk: made(chunk, tokens=honest.made.tokens),
        Sampling(temperature=1.5, seed=5),
    )
    assert audited(auditor, shown).finding(LIMIT) is Finding.GROSS


@pytest.mark.parametrize("forgery", ["zero", "identity", "noise", "one position", "not finite", "another shape"])
def test_forged_outputs_are_found(server: Engine, auditor: Engine, forgery: str) -> None:
    def forged(chunk: Chunk) -> Chunk:
        data = bytearray(chunk.made.hidden)
        if forgery == "zero":
            data[12:] = bytes(len(data) - 12)
        elif forgery == "identity":
            data = bytearray(chunk.given.hidden)
        elif forgery == "noise":
            data[12:] = torch.randn((len(data) - 12) // 4, generator=torch.manual_seed(1)).numpy().tobytes()
        elif forgery == "one position":
            data[12 : 12 + 256] = bytes(256)
        elif forgery == "not finite":
            data[12:16] = b"\xff\xff\xff\x7f"
        else:
            data = data[:12]
        return made(chunk, hidden=bytes(data))

    assert audited(auditor, evidence(server, MIDDLE, 1, forged)).finding(LIMIT) is Finding.GROSS


def test_a_skipped_layer_is_found(model: LocalModel, auditor: Engine) -> None:
    class Missing:
        def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return x

    shard = Shard.load(model, WHOLE, "float32", CPU)
    shard.layers[2] = Missing()
    lazy = Engine(shard, 1024)
    found = audited(auditor, evidence(lazy, MIDDLE, 1))
    lazy.stop()
    assert found.finding(LIMIT) is Finding.GROSS


def test_a_changed_input_is_no_evidence_and_another_engine_no_auditor(server: Engine, model: LocalModel) -> None:
    shown = evidence(server, MIDDLE, 1)
    flipped = bytearray(shown.inputs[0].hidden)
    flipped[100] ^= 1
    inputs = (msgspec.structs.replace(shown.inputs[0], hidden=bytes(flipped)), *shown.inputs[1:])
    part = Engine(Shard.load(model, Span(0, 3), "float32", CPU), 256)
    with pytest.raises(Unproven):
        audited(part, msgspec.structs.replace(shown, inputs=inputs))
    with pytest.raises(Refused, match="does not hold"):
        audited(part, shown)
    part.stop()


def test_yesterdays_activations_of_another_prompt_are_found(server: Engine, auditor: Engine) -> None:
    other = evidence(server, MIDDLE, 0)
    shown = evidence(server, MIDDLE, 1, lambda chunk: made(chunk, hidden=other.made.hidden))
    assert audited(auditor, shown).finding(LIMIT) is Finding.GROSS


def test_a_replay_leaves_no_session_behind(server: Engine, auditor: Engine) -> None:
    shown = evidence(server, WHOLE, 2)

    async def run() -> int:
        await replay(auditor, shown)
        await auditor.open(SessionId("next"), WHOLE, 8, Sampling(), ())  # commands are obeyed in order
        return auditor.sessions

    assert anyio.run(run) == 1
    auditor.close(SessionId("next"))
