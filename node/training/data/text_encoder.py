"""A model's tokenizer for training: plain text to ids, without special tokens, and the id that closes a document."""

import hashlib
from dataclasses import dataclass
from typing import Any

from shoal.swarm.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class TokenizerEncoder:
    """A `token_store.TextEncoder` over a tokenizer.json."""

    vocabulary: int
    end: int
    identity: str
    _tokenizer: Any

    @classmethod
    def from_json(cls, content: bytes, vocabulary: int, end: int | None, what: str) -> "TokenizerEncoder":
        """content: of tokenizer.json; vocabulary: rows of the model's embedding; end: the model's end-of-text id

        raises: UsageError when the file is no tokenizer, or is another model's
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises nothing narrower
            raise UsageError(f"the tokenizer of {what} cannot be read: {error}") from error
        known = tokenizer.get_vocab(with_added_tokens=True).values()
        highest = max(known, default=-1)
        if highest < 0:
            raise UsageError(f"the tokenizer of {what} has no tokens")
        if highest >= vocabulary:
            raise UsageError(
                f"the tokenizer has ids up to {highest}, but {what} has a vocabulary of {vocabulary}: "
                "they do not belong together"
            )
        if end is None or not 0 <= end < vocabulary:
            raise UsageError(f"{what} names no end-of-text token within its vocabulary (eos_token_id in config.json)")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        identity = hashlib.sha256(content + f"\n{vocabulary} {end}".encode()).hexdigest()
        return cls(vocabulary, end, identity, tokenizer)

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(texts, add_special_tokens=False)]
