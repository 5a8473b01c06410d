"""What a run will cost: bytes each round, time on the measured link, memory; and the `auto` settings that follow."""

import time

import numpy as np

from shoal.compression.presets import preset
from shoal.swarm.rounds.exchange import RunSpec
from shoal.swarm.rounds.run_identity import run_id

from .config import ConfigFile, TrainingConfig
from .events import Planned
from .strategies.pace import chosen_pace
from .worker_parts import Prepared, settings_with

ASSUMED_UPLINK_BIT_S = 10e6  # where nobody is there to measure with: an ordinary home's
MEETING_S = 1.0  # of a round besides its bytes
SAMPLE = 1 << 18  # values that are encoded to see how large they get
TIMED_STEPS = 2


def planned(
    prepared: Prepared, config: TrainingConfig, spec: RunSpec, uplink_bit_s: float | None, step_s: float | None = None
) -> Planned:
    """Through `RunSpec.quorum` peers: each sends its own update but its own shards, and as owner of its shards the
    aggregates to all the others; the larger of two directions decides on the time.
    """
    largest = max(spec.fragments)
    payload = round(largest * bits_per_value(spec.preset) / 8)
    peers = max(2, config.group.quorum)
    each_way = round(2 * payload * (peers - 1) / peers)
    rate = min(filter(None, (uplink_bit_s, config.limits.upload_bit_s)), default=None)
    steps = -(-config.strategy.interval // config.strategy.fragments)
    return Planned(
        run=config.name,
        run_id=run_id(spec),
        model=prepared.model.name,
        parameters=prepared.count,
        strategy=config.strategy.name,
        interval=config.strategy.interval,
        preset=spec.preset,
        windows=prepared.data.order.windows,
        tokens_per_round=steps * config.batch.sequences * config.data.sequence,
        round_payload_bytes=payload,
        upload_bytes=each_way,
        download_bytes=each_way,
        peers=peers,
        uplink_bit_s=rate,
        exchange_s=None if rate is None else 8 * each_way / rate + MEETING_S,
        memory_bytes=prepared.memory_bytes,
        train_s=None if step_s is None else steps * step_s,
    )


def bits_per_value(name: str) -> float:
    """Of a sample as hard to encode as updates get: noise."""
    sample = np.random.default_rng(0).standard_normal(SAMPLE).astype(np.float32)
    return 8 * len(preset(name).encode(sample)) / SAMPLE


def step_seconds(prepared: Prepared) -> float:
    """Time of one inner step on this machine; the model is left as it was."""
    sequences = range(min(prepared.config.batch.sequences, len(prepared.data.windows)))
    batch = prepared.data.windows.batch(list(sequences))
    seconds = []
    for _ in range(TIMED_STEPS):
        began = time.perf_counter()
        prepared.steps.run(batch, 0, moves=False)
        seconds.append(time.perf_counter() - began)
    prepared.steps.optimizer.zero_grad()
    return min(seconds)


def resolved(file: ConfigFile, prepared: Prepared, step_s: float, uplink_bit_s: float | None) -> TrainingConfig:
    """The config with its `auto` settings chosen for the link. raises: ValueError"""
    config, strategy = file.config, file.config.strategy
    if not file.auto:
        return config
    rate = min(uplink_bit_s or ASSUMED_UPLINK_BIT_S, config.limits.upload_bit_s or float("inf"))
    pace = chosen_pace(
        prepared.count,
        step_s,
        rate,
        preset=None if "preset" in file.auto else strategy.preset,
        interval=None if "interval" in file.auto else strategy.interval,
        fragments=strategy.fragments,
        delay=strategy.delay,
    )
    return settings_with(config, interval=pace.interval, preset=pace.preset)
