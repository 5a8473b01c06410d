"""The small Llama and the novels that `training_loss.py` trains on: what must be equal for all strategies."""

import ctypes
import sys
from pathlib import Path
from typing import Any

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
CHUNK = 128  # tokens whose logits exist at a time: 2 MiB, which the processor's cache holds
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
        attn_implementation="eager",  # of 64 tokens in bf16, half the time of torch's fused one
    )
    torch.manual_seed(seed)
    model: nn.Module = llama.LlamaForCausalLM(config)
    return model


class ChunkedLoss(torch.autograd.Function):
    """Mean cross entropy of hidden @ head.T in nats, with its gradients, never holding all logits: products in bf16.

    hidden: (T, C); head: (VOCABULARY, C); targets: (T,)
    error: as of bf16 autocast, the gradient within 1 % of float32's
    source: Hsu et al., Liger Kernel (fused linear cross entropy), arXiv:2410.10989
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        count = len(hidden)
        hidden_b, head_b = hidden.bfloat16(), head.bfloat16()
        of_hidden, of_head, total = torch.empty_like(hidden), torch.zeros_like(head), torch.zeros(())
        for start in range(0, count, CHUNK):
            part, wanted = hidden_b[start : start + CHUNK], targets[start : start + CHUNK, None]
            logits = torch.mm(part, head_b.T).float()
            logits -= logits.amax(1, keepdim=True)
            at_target = logits.gather(1, wanted)
            logits.exp_()
            mass = logits.sum(1, keepdim=True)
            total += (mass.log() - at_target).sum()
            logits /= mass * count
            logits.scatter_add_(1, wanted, torch.full_like(mass, -1 / count))
            slope = logits.bfloat16()
            of_hidden[start : start + CHUNK] = torch.mm(slope, head_b)
            of_head += torch.mm(slope.T, part)
        ctx.save_for_backward(of_hidden, of_head)
        return total / count

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # noqa: ANN401
        of_hidden, of_head = ctx.saved_tensors
        return slopes[0] * of_hidden, slopes[0] * of_head, None


def training_loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:  # noqa: ANN401  a LlamaForCausalLM
    """Mean cross entropy in nats, under bf16 autocast. tokens: (B, SEQUENCE + 1)"""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state
    loss: torch.Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, 1).float(), model.lm_head.weight, tokens[:, 1:].flatten()
    )
    return loss


@torch.no_grad()
def held_out_loss(model: nn.Module, held_out: Windows, count: int) -> float:
    """Mean cross entropy in nats, in float32, over `count` windows spread evenly over the held-out novel."""
    chosen = held_out[np.linspace(0, len(held_out) - 1, count).astype(int)]
    total = 0.0
    for start in range(0, count, 16):
        tokens = torch.from_numpy(chosen[start : start + 16])
        logits = model(input_ids=tokens[:, :-1]).logits
        mean = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        total += float(mean) * len(tokens)
    return total / count


def keep_freed_memory() -> None:
    """glibc gives large blocks back to the system at once; fetching them again took a fifth of a step."""
    if sys.platform == "linux":
        mmap_threshold, trim_threshold = -3, -1  # malloc.h
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 30)
        ctypes.CDLL(None).mallopt(trim_threshold, (1 << 31) - 1)
