"""The embedded model's own profile: `fast` works on what the quickstart serves, and loses as little as it says."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.compression.kv_levels import LEVELS
from shoal.compression.kv_profile import KvProfile
from shoal.node.engine import Engine
from shoal.node.kv_calibration import TARGET_KL
from shoal.node.kv_coding import read_profile
from shoal.node.kv_quality import CONTINUATION, Model, coded_by, continuation, measure
from shoal.node.model_source import LocalModel, embedded_folder, resolve
from shoal.node.shard import Shard
from shoal.swarm.identifiers import SessionId
from shoal.swarm.manifest import KV_PROFILE
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.compute import Work
from shoal.swarm.units import Span

torch.set_num_threads(1)
TOKENS, TEXTS = 192, 2
A, B = SessionId("a"), SessionId("b")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def novels(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return resolve("novels-6m", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def profile(novels: LocalModel) -> KvProfile:
    found = read_profile({KV_PROFILE: novels.text_file(KV_PROFILE)}, novels.manifest.layers)
    assert found is not None
    return found


@pytest.fixture
def engine(novels: LocalModel, profile: KvProfile) -> Iterator[Engine]:
    whole = Span(0, novels.manifest.layers + 2)
    made = Engine(Shard.load(novels, whole, "float32", torch.device("cpu")), 2048, kv_profile=profile)
    yield made
    made.stop()


def written_by_the_model(model: Model) -> list[torch.Tensor]:
    """Texts such as the model was trained on, without a book: its own. Each (T,)"""
    torch.manual_seed(0)
    start = torch.randint(100, 4000, (TEXTS, 4))
    wanted = TOKENS + CONTINUATION
    written = model.generate(start, do_sample=True, max_new_tokens=wanted, min_new_tokens=wanted)
    return list(written)


def test_every_level_of_the_shipped_profile_costs_what_it_is_named_for(profile: KvProfile) -> None:
    """Two texts, so a level may be at twice its target; bits as docs/measures.md has them, with some room."""
    model = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=torch.float32).eval()
    held_out = [continuation(model, text) for text in written_by_the_model(model)]
    found = [measure(model, held_out, coded_by(profile, level)) for level in LEVELS]
    for level, quality, most_bits in zip(LEVELS, found, (2.6, 1.6, 0.9), strict=True):
        assert quality.kl < 2 * TARGET_KL[level]
        assert quality.bits_per_value < most_bits


@pytest.mark.anyio
async def test_a_session_goes_on_from_a_lossy_snapshot(engine: Engine, novels: LocalModel) -> None:
    whole = Span(0, novels.manifest.layers + 2)
    prompt = tuple((17 * i + i * i // 3) % 4000 + 50 for i in range(150))
    for session in (A, B):
        await engine.open(session, whole, 200, Sampling(), ())
    await engine.run(Work(A, 0, len(prompt), ids=prompt))
    exact = await engine.export_kv(A, 0, 128)
    lossy = await engine.export_kv(A, 0, 128, "default")
    assert sum(map(len, lossy)) < sum(map(len, exact)) / 8
    assert await engine.import_kv(B, 0, lossy) == 128
    done = await engine.run(Work(B, 128, len(prompt) - 128, ids=prompt[128:], wants_token=True))
    assert done.choice is not None


def test_the_package_carries_the_profile() -> None:
    assert (Path(embedded_folder()) / KV_PROFILE).stat().st_mode & 0o444 == 0o444
