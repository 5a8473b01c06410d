"""A run's folder is enough to do its rounds again; whatever was changed in it comes out."""

from pathlib import Path

import msgspec
import pytest
import torch
from training.keeper_run import Run, run_of
from training.local_exchange import peers

from shoal.node.training.run_record import RecordLine, RoundLine, read_record, spec_of
from shoal.node.training.run_replay import first_parameters, replayed
from shoal.swarm.errors import UsageError

TWO = peers(2)
ROUNDS = 7


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {}


async def trained(run: Run) -> tuple[Path, list[RecordLine]]:
    """Of one of two peers: its folder and its record. A checkpoint each third round."""
    torch.set_num_threads(1)
    for name in TWO:
        await run.start(name)
    await run.train(TWO, ROUNDS)
    folder = run.folder / TWO[0]
    return folder, read_record(folder / "record.jsonl")


def last_round(lines: list[RecordLine]) -> int:
    return max(line.round for line in lines if isinstance(line, RoundLine))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "strategy",
    [{"name": "sparse", "interval": 2}, {"name": "streaming", "interval": 4, "fragments": 2, "delay": 1}],
    ids=lambda strategy: str(strategy["name"]),
)
async def test_every_state_comes_out_again_from_the_first_parameters_and_from_a_checkpoint(
    tmp_path: Path, strategy: dict[str, object]
) -> None:
    async with run_of(tmp_path, strategy=strategy) as run:
        folder, lines = await trained(run)
        whole = replayed(folder, lines, first_parameters(run.file, spec_of(lines), tmp_path / "cache"))
        assert (whole.problems, whole.rounds) == ((), last_round(lines) + 1)
        part = replayed(folder, lines)
        assert part.problems == ()
        assert part.begin.startswith("checkpoint ")
        assert 0 < part.rounds < whole.rounds


@pytest.mark.anyio
async def test_what_was_changed_in_record_log_or_checkpoint_is_named(tmp_path: Path) -> None:
    async with run_of(tmp_path) as run:
        folder, lines = await trained(run)
    spec = spec_of(lines)

    def again(changed: list[RecordLine]) -> tuple[str, ...]:
        return replayed(folder, changed, first_parameters(run.file, spec, tmp_path / "cache")).problems

    at = next(i for i, line in enumerate(lines) if isinstance(line, RoundLine) and line.round == 2)
    for key, value in (("after", "ab" * 32), ("contributors", ((TWO[0], 1),)), ("aggregates", ("00",) * 3)):
        changed = [*lines[:at], msgspec.structs.replace(lines[at], **{key: value}), *lines[at + 1 :]]
        assert again(changed) == (f"round 2: {key} in the record is not what the log holds",)
    assert again(lines[:at] + lines[at + 1 :]) == ("the log has round 2, the record does not",)
    delta = folder / "rounds" / "0000000003.delta"
    whole = delta.read_bytes()
    delta.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert again(lines) == ("round 3 cannot be done again: 0000000003.delta is damaged",)
    delta.unlink()
    assert again(lines) == (
        f"the log does not lead from 3 rounds from the first parameters on to round {last_round(lines)}, "
        "the last of the record",
    )
    delta.write_bytes(whole)
    assert again(lines) == ()
    for saved in (folder / "checkpoints").iterdir():
        (saved / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UsageError, match="holds no checkpoint to begin with"):
        replayed(folder, lines)


@pytest.mark.anyio
async def test_a_config_of_another_beginning_is_refused(tmp_path: Path) -> None:
    async with run_of(tmp_path) as run:
        _, lines = await trained(run)
        config = msgspec.structs.replace(run.file.config, seed=3)
        other = msgspec.structs.replace(run.file, config=config)
        with pytest.raises(UsageError, match="is not what the run tiny began with"):
            first_parameters(other, spec_of(lines), tmp_path / "cache")
