"""A model of some 10^4 parameters with a tokenizer of bytes, a text, and a config to train the one on the other."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from shoal.node.training.config import ConfigFile
from shoal.node.training.config_file import config_from

VOCABULARY = 257
END = 256
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": None,
}
STORY = "the old house stood at the end of a lane and nobody had lived in it for years but the clock went on"
WORDS = STORY.split()


def tiny_model(folder: Path) -> Path:
    """A folder that has a configuration and a tokenizer, and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: index for index, sign in enumerate(alphabet)} | {"<end>": END}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def text(words: int, seed: int) -> str:
    draw = random.Random(seed)
    return "\n".join(" ".join(draw.choice(WORDS) for _ in range(12)) for _ in range(words // 12))


def tiny_tables(folder: Path, **changes: object) -> dict[str, Any]:
    """The tables of a config file; a change is of some of a table's keys, but a strategy is changed as a whole."""
    tiny_model(folder / "model")
    (folder / "train.txt").write_text(text(9000, 1))
    (folder / "held.txt").write_text(text(600, 2))
    tables: dict[str, Any] = {
        "name": "tiny",
        "model": str(folder / "model"),
        "initial": "random",
        "rounds": 6,
        "data": {"files": ["train.txt"], "held_out": ["held.txt"], "sequence": 32},
        "batch": {"sequences": 4},
        "strategy": {"name": "diloco", "interval": 5},
        "inner": {"learning_rate": 0.01},
        "group": {"quorum": 2, "shards": 3, "grace_s": 1.0, "deadline_s": 10.0},
        "evaluation": {"every": 3, "sequences": 4},
    }
    for key, change in changes.items():
        merged = key != "strategy" and isinstance(change, dict) and key in tables
        tables[key] = {**tables[key], **change} if merged and isinstance(change, dict) else change
    return tables


def tiny_config(folder: Path, **changes: object) -> ConfigFile:
    return config_from(tiny_tables(folder, **changes), folder)


def as_toml(tables: dict[str, Any]) -> str:
    """Of tables of numbers, strings, booleans and lists of strings."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for key, table in tables.items():
        if isinstance(table, dict):
            lines += [f"[{key}]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"
