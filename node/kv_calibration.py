"""Makes the profile by which a model's KV caches are compressed: runs the model over text and fits the codec to it.

The sensitivity of the output to each key and value is the Fisher information, from gradients of the log-probability
of tokens that the model itself draws; where no backward pass is allowed (a model too large for it, quantised
weights) the second moments of the queries stand in for it for keys and of the output projection for values, with one
scale per tensor measured by a forward pass with noise.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.compression.kv_fitting import KvSample, Sensitivity, fit_profile, unrotated
from shoal.compression.kv_levels import LEVELS
from shoal.compression.kv_profile import KvProfile
from shoal.swarm.errors import UsageError

from .folder_manifest import weight_files
from .key_rotation import KeyRotation, key_rotation
from .kv_forward_sensitivity import balanced, output_weights, query_moments
from .kv_quality import Continuation, Model, cached, coded_by, continuation, divergence, measure, stacked
from .safetensors_header import read_header

# KL in nats a token that each level may cost on text that the fit did not see.
TARGET_KL = {"near-lossless": 3.5e-4, "default": 1.6e-3, "small": 6e-3}
FIRST_STEPS = (-5, 0, 4)
STEP_LIMIT = 40
JOINT_CHANNELS = 256
CHECKED_EVERY = 5

Floats = npt.NDArray[np.float32]


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
    rotation = key_rotation(model)
    samples = []
    total: Sensitivity | None = None
    for ids in documents:
        sample, part = _observe(model, ids, generator, rotation, backward=backward, together=together)
        samples.append(sample)
        total = part if total is None else total.plus(part)
    if total is None:
        raise ValueError("no documents to calibrate on")
    if not backward:
        known = [continuation(model, ids) for ids in checks]
        divergences = [partial(divergence, model, document) for document in known]
        total = balanced(total, [document.exact for document in known], divergences, seed)
    tokens = sum(len(ids) for ids in documents)
    sensitivity = total.divided_by(tokens)
    _, _, heads, width = samples[0].keys.shape
    if joint is None:
        joint = heads * width <= JOINT_CHANNELS
    groups = 1 if joint else heads
    profile = fit_profile(
        samples,
        sensitivity,
        rotation.inverse_frequencies,
        groups,
        FIRST_STEPS,
        together=together,
        neighbours=rotation.neighbours,
    )
    held_out = [continuation(model, ids) for ids in checks]
    steps = [_step_for(model, profile, held_out, level) for level in LEVELS]
    return replace(profile, steps=(steps[0], steps[1], steps[2]))


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
    rotation: KeyRotation,
    *,
    backward: bool,
    together: bool,
) -> tuple[KvSample, Sensitivity]:
    if not backward:
        with torch.no_grad():
            _, keys, values = cached(model, ids)
        sample = KvSample(stacked(keys)[..., rotation.order], stacked(values))
        _, _, heads, width = sample.keys.shape
        moments = query_moments(model, ids, heads, width, rotation.order)
        return sample, Sensitivity(moments, output_weights(model, heads, width) * len(ids))
    output, keys, values = cached(model, ids)
    log_probability = torch.log_softmax(output.logits[0].float(), -1)
    drawn = torch.multinomial(log_probability.detach().exp(), 1, generator=generator)
    gradients = torch.autograd.grad(-log_probability.gather(1, drawn).sum(), [*keys, *values])
    half = len(keys)
    sample = KvSample(stacked(keys)[..., rotation.order], stacked(values))
    gradient = KvSample(stacked(gradients[:half])[..., rotation.order], stacked(gradients[half:]))
    of_keys, of_values = _rows(unrotated(gradient, rotation.inverse_frequencies)), _rows(gradient.values)
    turned_keys, turned_values = of_keys.transpose(0, 2, 1), of_values.transpose(0, 2, 1)
    cross = turned_keys @ of_values if together else None
    return sample, Sensitivity(turned_keys @ of_keys, turned_values @ of_values, cross)


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
    """Calibrate the model of a folder on stretches spread evenly over text files; every fifth of them sets the levels.

    raises: ValueError when the texts are not UTF-8 or too short for so many stretches, or the stretches too few or
        longer than the model's context; UsageError when the folder holds no whole model
    """
    if documents < CHECKED_EVERY:
        raise ValueError(f"of {documents} stretches none would be left to set the levels by: take {CHECKED_EVERY}")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} holds no model with its tokenizer: {name} is missing")
    for name in weight_files(folder):
        read_header(folder / name)  # says in one line what is wrong with a damaged file
    logging: Any = transformers.utils.logging  # without types
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it warns of texts that are longer than the context, and these are cut
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([token for path in texts for token in tokenizer(_text(path)).input_ids])
    if len(ids) < documents * tokens:
        raise ValueError(f"{len(ids)} tokens of text, {documents * tokens} are wanted: add text or ask for less")
    model: Model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    context = getattr(model.config, "max_position_embeddings", None) or tokens
    if tokens > context:
        raise ValueError(f"stretches of {tokens} tokens are longer than the model's context of {context}")
    stride = (len(ids) - tokens) // max(documents - 1, 1)
    stretches = [ids[index * stride : index * stride + tokens] for index in range(documents)]
    fit = [stretch for index, stretch in enumerate(stretches) if index % CHECKED_EVERY != CHECKED_EVERY - 1]
    return calibrate(
        model, fit, stretches[CHECKED_EVERY - 1 :: CHECKED_EVERY], joint=joint, together=together, backward=backward
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start})") from error
