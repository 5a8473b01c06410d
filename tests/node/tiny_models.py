"""Tiny models with random weights, one of each family, saved as Hugging Face folders.

The weights are drawn wider than usual, so that the likeliest token leads by more than rounding can move it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shoal.node.transformers_imports import Untyped, causal_model_class, import_quickly

VOCABULARY = 211
_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of decoder, with the settings that make its peculiarities count on short sequences."""

    model_type: str
    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    reference_attention: str = "sdpa"  # what transformers' own run uses; sdpa leaves out soft caps and sinks


FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", {"tie_word_embeddings": False}),
    "llama-tied": Family("llama", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-scaled-rope": Family(
        "llama",
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", {"head_dim": 32}),
    "mistral": Family("mistral", "MistralForCausalLM", {"sliding_window": 12}),
    "gemma2": Family(
        "gemma2", "Gemma2ForCausalLM", {"head_dim": 16, "sliding_window": 12, "tie_word_embeddings": False}, "eager"
    ),
    "gemma3": Family(
        "gemma3_text", "Gemma3ForCausalLM", {"head_dim": 16, "sliding_window": 12, "tie_word_embeddings": False}
    ),
    "phi": Family("phi", "PhiForCausalLM"),
    "phi3": Family("phi3", "Phi3ForCausalLM", {"sliding_window": 12}),
    "gpt-neox": Family("gpt_neox", "GPTNeoXForCausalLM"),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM"),
    "granite": Family(
        "granite",
        "GraniteForCausalLM",
        {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    ),
    "cohere": Family("cohere", "CohereForCausalLM", {"logit_scale": 0.5}),
    "mixtral": Family("mixtral", "MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    ),
    "gpt-oss": Family(
        "gpt_oss",
        "GptOssForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 12},
        "eager",
    ),
}


def make_model(name: str, seed: int = 7, **changes: object) -> Untyped:
    """A transformers model of a family, float32, in evaluation mode."""
    family = FAMILIES[name]
    model_class = causal_model_class(family.architecture, family.model_type)
    config = model_class.config_class(**(_SHARED | family.settings | changes))
    config._attn_implementation = family.reference_attention  # noqa: SLF001
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms, biases, sinks start as ones or zeros, which would hide a mix-up
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save_model(model: Untyped, folder: Path) -> Path:
    import_quickly("transformers.utils.logging").disable_progress_bar()
    model.save_pretrained(folder)
    return folder


def greedy(model: Untyped, prompt: list[int], count: int) -> list[int]:
    """What transformers generates after a prompt."""
    with torch.inference_mode():
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
    return [int(token) for token in ids[0, len(prompt) :]]
