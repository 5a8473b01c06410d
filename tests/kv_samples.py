"""Small KV blocks and a profile, made by seeded arithmetic: correlated heads, an outlying first token, rotation."""

from dataclasses import replace
from functools import cache

import numpy as np

from shoal.compression.kv_block import KvBlock, KvShape, from_floats
from shoal.compression.kv_fitting import KvSample, Sensitivity, fit_profile
from shoal.compression.kv_profile import KvProfile
from shoal.compression.kv_transform import LayerTransform
from shoal.compression.rotary import rotate, rotation

LAYERS, HEADS, WIDTH = 2, 2, 16
CHANNELS = HEADS * WIDTH
FREQUENCIES = 1e4 ** (-np.arange(WIDTH // 2) / (WIDTH // 2))


def sample(tokens: int, seed: int, first_position: int = 0) -> KvSample:
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(2, LAYERS, CHANNELS, CHANNELS)) / 4
    rows = (random.laplace(size=(2, LAYERS, tokens, CHANNELS)) @ mixing + 0.7).astype(np.float32)
    if first_position == 0:
        rows[:, :, 0] *= 20
    keys, values = rows.reshape(2, LAYERS, tokens, HEADS, WIDTH)
    cosines, sines = rotation(FREQUENCIES, first_position, tokens)
    return KvSample(rotate(keys, cosines, sines), values, first_position)


def components(made: KvProfile, held: KvBlock, accelerate: bool = False) -> np.ndarray:
    """(L, P, T, C) of a block."""
    transform = LayerTransform(made, made.offsets, held.shape.tokens, held.shape.dtype, accelerate)
    transform.move(held.shape)
    return np.stack([transform.forward(i, held.keys[i], held.values[i]).copy() for i in range(made.layers)])


def block(tokens: int, seed: int = 1, dtype: str = "bfloat16", first_position: int = 0) -> KvBlock:
    made = sample(tokens, seed, first_position)
    shape = KvShape(LAYERS, tokens, HEADS, WIDTH, dtype, first_position)
    return KvBlock(shape, from_floats(made.keys, dtype), from_floats(made.values, dtype))


@cache
def profile(groups: int = 1, seed: int = 7, together: bool = False) -> KvProfile:
    random = np.random.default_rng(seed)
    roots = random.normal(size=(2, LAYERS, CHANNELS, CHANNELS))
    matrices = roots @ roots.transpose(0, 1, 3, 2) / 1e4
    sensitivity = Sensitivity(matrices[0], matrices[1])
    samples = [sample(200, 100 + i) for i in range(4)]
    return fit_profile(samples, sensitivity, FREQUENCIES, groups, (0, 6, 10), together=together)


def coarser(made: KvProfile, quarters: int) -> KvProfile:
    steps = tuple(step + quarters for step in made.steps)
    return replace(made, steps=(steps[0], steps[1], steps[2]))
