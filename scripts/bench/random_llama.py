"""The random Llama of the anchors' figures, written as a Hugging Face folder.

python scripts/bench/random_llama.py FOLDER TOKENIZER_FOLDER
"""

import shutil
import sys
from pathlib import Path

SIZES = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


def write_random_llama(folder: Path, tokenizer_from: Path) -> Path:
    """tokenizer_from: a folder whose tokenizer files are copied; the benchmark speaks ids only."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder / name)
    return folder


if __name__ == "__main__":
    write_random_llama(Path(sys.argv[1]), Path(sys.argv[2]))
