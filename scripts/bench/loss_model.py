"""The small Llama and the novels that `training_loss.py` trains on: what must be equal for all strategies."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn

from shoal.node.transformers_imports import import_quickly

ROOT = Path(__file__).parents[2]
HELD_OUT = "sherlock.txt"
SEQUENCE = 64  # tokens
VOCABULARY = 4096
Windows = npt.NDArray[np.int64]


class Novels:
    """Windows of SEQUENCE + 1 tokens. train: (N, SEQUENCE + 1), of all novels but one; held_out: of that one."""

    def __init__(self, corpus: Path) -> None:
        tokenizer = Tokenizer.from_file(str(ROOT / "node/embedded/novels-6m/tokenizer.json"))
        texts = sorted(corpus.glob("*.txt"))
        if HELD_OUT not in {path.name for path in texts} or len(texts) < 2:
            raise SystemExit(f"{corpus} does not hold the novels, {HELD_OUT} among them")
        tokens = {path.name: np.array(tokenizer.encode(path.read_text()).ids) for path in texts}
        self.train = windows(np.concatenate([ids for name, ids in tokens.items() if name != HELD_OUT]))
        self.held_out = windows(tokens[HELD_OUT])

    def batch(self, seed: int, step: int, worker: int, workers: int, batch: int) -> torch.Tensor:
        """(batch, SEQUENCE + 1); no window twice in an epoch, whatever the strategy."""
        first = (step * workers + worker) * batch
        epoch, offset = divmod(first, len(self.train) - len(self.train) % (workers * batch))
        order = np.random.default_rng([seed, epoch]).permutation(len(self.train))
        return torch.from_numpy(self.train[order[offset : offset + batch]])


def windows(tokens: npt.NDArray[np.int64]) -> Windows:
    count = (len(tokens) - 1) // SEQUENCE
    return np.stack([tokens[i * SEQUENCE : (i + 1) * SEQUENCE + 1] for i in range(count)])


def small_llama(seed: int) -> nn.Module:
    """1.07 million parameters, 4 layers; the same bits for the same seed."""
    llama = import_quickly("transformers.models.llama.modeling_llama")
    config = import_quickly("transformers.models.llama.configuration_llama").LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=112,
        intermediate_size=304,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=SEQUENCE,
        tie_word_embeddings=True,
        use_cache=False,
    )
    torch.manual_seed(seed)
    model: nn.Module = llama.LlamaForCausalLM(config)
    return model


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats. tokens: (B, SEQUENCE + 1)"""
    logits = model(input_ids=tokens[:, :-1]).logits
    return nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))


@torch.no_grad()
def held_out_loss(model: nn.Module, held_out: Windows, count: int) -> float:
    """Over `count` windows spread evenly over the held-out novel."""
    chosen = held_out[np.linspace(0, len(held_out) - 1, count).astype(int)]
    parts: list[float] = [
        float(loss_of(model, torch.from_numpy(chosen[i : i + 16]))) * len(chosen[i : i + 16])
        for i in range(0, count, 16)
    ]
    return sum(parts) / count
