"""Makes the profile by which a model's KV caches are compressed: runs the model over text and fits the codec to it.

The sensitivity of the output to each key and value is the Fisher information, from gradients of the log-probability
of tokens that the model itself draws; where no backward pass is allowed (a model too large for it, quantised
weights) the second moments of the queries stand in for it for keys and of the output projection for values, with one
scale per tensor measured by a forward pass with noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from shoal.compression.kv_bitstream import FINE_TOKENS, decode_kv, encode_kv
from shoal.compression.kv_block import KvBlock, KvShape, from_floats, to_floats
from shoal.compression.kv_fitting import KvSample, Sensitivity, fit_profile, unrotated
from shoal.compression.kv_profile import LEVELS, KvProfile

from .kv_forward_sensitivity import balanced, output_weights, query_moments

# KL in nats a token that each level may cost on text that the fit did not see.
TARGET_KL = {"near-lossless": 3.5e-4, "default": 1.6e-3, "small": 6e-3}
FIRST_STEPS = (-5, 0, 4)
STEP_LIMIT = 40
JOINT_CHANNELS = 256
CONTINUATION = 64

Floats = npt.NDArray[np.float32]
# A causal language model of transformers, whose own types do not say what calling one gives.
Model = Any


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """A document for measuring: an exact cache, the tokens that follow, and the model's log-probabilities for them."""

    exact: KvBlock
    tokens: torch.Tensor
    log_probabilities: torch.Tensor


@dataclass(frozen=True, slots=True)
class Quality:
    """Against the exact cache: KL (mean and the worst document), top-1 agreement, perplexity ratio less one."""

    kl: float
    worst_kl: float
    top1: float
    perplexity_change: float
    bits_per_value: float


def calibrate(
    model: Model,
    documents: Sequence[torch.Tensor],
    checks: Sequence[torch.Tensor],
    *,
    joint: bool | None = None,
    together: bool = False,
    backward: bool = True,
    seed: int = 0,
) -> KvProfile:
    """documents: token ids (T,) to fit on; checks: others, longer than CONTINUATION, to set the levels' steps by.

    joint: one transform over all heads of a layer instead of one a head: fewer bits, larger profile; None joins up
    to JOINT_CHANNELS channels. together: one for keys and values: fewer bits still, twice the profile and the work
    """
    generator = torch.Generator().manual_seed(seed)
    frequencies = inverse_frequencies(model)
    samples = []
    total: Sensitivity | None = None
    for ids in documents:
        sample, part = _observe(model, ids, generator, frequencies, backward=backward, together=together)
        samples.append(sample)
        total = part if total is None else total.plus(part)
    if total is None:
        raise ValueError("no documents to calibrate on")
    if not backward:
        known = [continuation(model, ids) for ids in checks]
        divergences = [partial(_divergence, model, document) for document in known]
        total = balanced(total, [document.exact for document in known], divergences, seed)
    tokens = sum(len(ids) for ids in documents)
    sensitivity = total.divided_by(tokens)
    _, _, heads, width = samples[0].keys.shape
    if joint is None:
        joint = heads * width <= JOINT_CHANNELS
    groups = 1 if joint else heads
    profile = fit_profile(samples, sensitivity, frequencies, groups, FIRST_STEPS, together=together)
    held_out = [continuation(model, ids) for ids in checks]
    steps = [_step_for(model, profile, held_out, level) for level in LEVELS]
    return replace(profile, steps=(steps[0], steps[1], steps[2]))


def inverse_frequencies(model: Model) -> npt.NDArray[np.float64]:
    """(R/2,) of the rotary embedding; empty for a model without one."""
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            return np.asarray(module.inv_freq.detach().double().cpu().numpy())
    return np.empty(0)


def cached(model: Model, ids: torch.Tensor) -> tuple[Any, list[torch.Tensor], list[torch.Tensor]]:
    """The model's output for ids (T,), and the keys and values (1, H, T, D) of its layers as attention read them."""
    cache = DynamicCache()
    output = model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    return output, [layer.keys for layer in layers], [layer.values for layer in layers]


def block_of(keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], dtype: str = "bfloat16") -> KvBlock:
    arrays = [from_floats(_stacked(tensors), dtype) for tensors in (keys, values)]
    layers, tokens, heads, width = arrays[0].shape
    return KvBlock(KvShape(layers, tokens, heads, width, dtype), arrays[0], arrays[1])


def continuation(model: Model, ids: torch.Tensor) -> Continuation:
    """The last CONTINUATION tokens are what follows."""
    with torch.no_grad():
        _, keys, values = cached(model, ids[:-CONTINUATION])
    exact = block_of(keys, values)
    tokens = ids[-CONTINUATION:]
    return Continuation(exact, tokens, log_probabilities(model, exact, tokens))


def cache_of(block: KvBlock) -> DynamicCache:
    cache = DynamicCache()
    floats = [to_floats(array, block.shape.dtype) for array in (block.keys, block.values)]
    for layer in range(block.shape.layers):
        keys, values = (torch.from_numpy(np.ascontiguousarray(a[layer].transpose(1, 0, 2)))[None] for a in floats)
        cache.update(keys, values, layer)
    return cache


def log_probabilities(model: Model, block: KvBlock, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(input_ids=tokens[None], past_key_values=cache_of(block), use_cache=True)
    return torch.log_softmax(output.logits[0].float(), -1)


def measure(model: Model, held_out: Sequence[Continuation], code: Callable[[KvBlock], tuple[KvBlock, int]]) -> Quality:
    """code: a block to what is decoded of it and the bytes that travelled."""
    kl, agreement, surprise, bits = [], [], [], []
    for document in held_out:
        decoded, size = code(document.exact)
        exact = document.log_probabilities
        got = log_probabilities(model, decoded, document.tokens)
        kl.append(float((exact.exp() * (exact - got)).sum(-1).mean()))
        agreement.append(float((exact.argmax(-1) == got.argmax(-1)).float().mean()))
        following = document.tokens[1:, None]
        surprise.append(float((exact[:-1].gather(1, following) - got[:-1].gather(1, following)).mean()))
        bits.append(8 * size / document.exact.shape.values)
    change = float(np.exp(np.mean(surprise)) - 1)
    return Quality(float(np.mean(kl)), max(kl), float(np.mean(agreement)), change, float(np.mean(bits)))


def coded_by(profile: KvProfile, level: str) -> Callable[[KvBlock], tuple[KvBlock, int]]:
    def code(block: KvBlock) -> tuple[KvBlock, int]:
        payloads = encode_kv(block, level, profile, fine_tokens=FINE_TOKENS)
        return decode_kv(payloads, block.shape, profile), sum(map(len, payloads))

    return code


def _divergence(model: Model, document: Continuation, changed: KvBlock) -> float:
    exact = document.log_probabilities
    return float((exact.exp() * (exact - log_probabilities(model, changed, document.tokens))).sum(-1).mean())


def _step_for(model: Model, profile: KvProfile, held_out: Sequence[Continuation], level: str) -> int:
    """The coarsest step on the grid whose KL stays within the level's target."""
    index = LEVELS.index(level)

    def cost(quarters: int) -> float:
        tried = replace(profile, steps=(quarters, quarters, quarters))
        return measure(model, held_out, coded_by(tried, level)).kl

    # The divergence grows with the square of the step: one measurement brings the search near, the rest are steps.
    quarters = profile.steps[index]
    near = 2 * np.log2(TARGET_KL[level] / max(cost(quarters), 1e-9))
    quarters = int(np.clip(quarters + np.floor(near), -STEP_LIMIT, STEP_LIMIT))
    while quarters < STEP_LIMIT and cost(quarters) <= TARGET_KL[level]:
        quarters += 1
    while quarters > -STEP_LIMIT and cost(quarters) > TARGET_KL[level]:
        quarters -= 1
    return quarters


def _observe(
    model: Model,
    ids: torch.Tensor,
    generator: torch.Generator,
    frequencies: npt.NDArray[np.float64],
    *,
    backward: bool,
    together: bool,
) -> tuple[KvSample, Sensitivity]:
    if not backward:
        with torch.no_grad():
            _, keys, values = cached(model, ids)
        sample = KvSample(_stacked(keys), _stacked(values))
        _, _, heads, width = sample.keys.shape
        moments = query_moments(model, ids, heads, width)
        return sample, Sensitivity(moments, output_weights(model, heads, width) * len(ids))
    output, keys, values = cached(model, ids)
    log_probability = torch.log_softmax(output.logits[0].float(), -1)
    drawn = torch.multinomial(log_probability.detach().exp(), 1, generator=generator)
    gradients = torch.autograd.grad(-log_probability.gather(1, drawn).sum(), [*keys, *values])
    half = len(keys)
    sample = KvSample(_stacked(keys), _stacked(values))
    gradient = KvSample(_stacked(gradients[:half]), _stacked(gradients[half:]))
    keys, values = _rows(unrotated(gradient, frequencies)), _rows(gradient.values)
    cross = keys.transpose(0, 2, 1) @ values if together else None
    return sample, Sensitivity(keys.transpose(0, 2, 1) @ keys, values.transpose(0, 2, 1) @ values, cross)


def _stacked(tensors: Sequence[torch.Tensor]) -> Floats:
    """(1, H, T, D) of each layer as (L, T, H, D)."""
    return torch.stack([t.detach()[0].float().transpose(0, 1) for t in tensors]).contiguous().cpu().numpy()


def _rows(heads_lthd: Floats) -> npt.NDArray[np.float64]:
    """(L, T, C)."""
    return heads_lthd.reshape(heads_lthd.shape[0], heads_lthd.shape[1], -1).astype(np.float64)


def calibrate_files(
    folder: Path,
    texts: Sequence[Path],
    documents: int,
    tokens: int,
    *,
    joint: bool | None = None,
    together: bool = False,
    backward: bool = True,
) -> KvProfile:
    """Calibrate the model of a folder on stretches spread evenly over text files; every fifth sets the levels.

    raises: ValueError when the texts are too short for so many stretches
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    ids = torch.tensor([token for path in texts for token in tokenizer(path.read_text("utf-8", "replace")).input_ids])
    if len(ids) < documents * tokens:
        raise ValueError(f"{len(ids)} tokens of text, {documents * tokens} are wanted: add text or ask for less")
    stride = (len(ids) - tokens) // max(documents - 1, 1)
    stretches = [ids[index * stride : index * stride + tokens] for index in range(documents)]
    fit = [stretch for index, stretch in enumerate(stretches) if index % 5 != 4]
    return calibrate(model, fit, stretches[4::5], joint=joint, together=together, backward=backward)
