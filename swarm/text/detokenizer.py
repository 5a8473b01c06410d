"""Ids to text, one id at a time, never half a character.

`feed` returns the whole characters that are certain by now; `finish` returns what is left, with U+FFFD for bytes
that never became a character. The concatenation equals the decoding of all ids at once.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from .token_bytes import TokenRules, token_bytes

_TAIL = 4  # tokens of a prompt that can hold the beginning of an unfinished character
_WINDOW_HOLD = 8  # a window detokeniser gives up waiting for a character after this many tokens


class Detokenizer(Protocol):
    def feed(self, token: int) -> str: ...

    def finish(self) -> str: ...


class TokenNames(Protocol):
    """The part of a tokenizer that detokenising needs."""

    def id_to_token(self, token_id: int) -> str | None: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class TokenTable:
    """Bytes per id, computed once per id and kept."""

    def __init__(self, names: TokenNames, rules: TokenRules | None, special: frozenset[int]) -> None:
        self._names = names
        self.rules = rules
        self._special = special
        self._visible: dict[int, bytes] = {}

    def visible(self, token: int) -> bytes:
        """What the token adds to a text; b"" for special tokens and ids that the tokenizer does not know."""
        found = self._visible.get(token)
        if found is None:
            found = self._visible[token] = b"" if token in self._special else self.literal(token)
        return found

    def literal(self, token: int) -> bytes:
        """The token's own bytes, a special token's name too."""
        name = self._names.id_to_token(token)
        if name is None:
            return b""
        if token in self._special:
            return name.encode()
        if self.rules is None:
            return self._names.decode([token]).encode()
        return token_bytes(name, self.rules)

    def detokenizer(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """One that continues `prompt`, whose text it does not repeat."""
        if self.rules is None:
            return WindowDetokenizer(self._names, prompt)
        return ByteDetokenizer(self, self.rules, prompt)


class ByteDetokenizer:
    """For tokenizers in which a token is a fixed byte string."""

    def __init__(self, table: TokenTable, rules: TokenRules, prompt: Sequence[int]) -> None:
        self._table = table
        # As Rust's: each maximal invalid part becomes one U+FFFD (The Unicode Standard, table 3-8).
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        for token in prompt[-_TAIL:]:
            self._utf8.decode(table.visible(token))
        at_start = not any(table.visible(token) for token in prompt)
        self._strip = rules.strip if at_start else 0
        self._drop = rules.first_drops.encode() if at_start else b""
        self._replaced = dict(rules.replacements).get(rules.first_drops, "").encode()

    def feed(self, token: int) -> str:
        data = self._table.visible(token)
        if self._drop and data:
            data = data.replace(self._replaced, b"")
            self._drop = b""
        if self._strip and data:
            kept = data.lstrip(b" ")
            dropped = min(self._strip, len(data) - len(kept))
            data, self._strip = data[dropped:], 0 if kept else self._strip - dropped
        return self._utf8.decode(data)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """For any other tokenizer: decode a short window twice and return the difference.

    source: the prefix and read offsets of Hugging Face text-generation-inference (`decode_token`)
    """

    def __init__(self, names: TokenNames, prompt: Sequence[int]) -> None:
        self._names = names
        self._ids = list(prompt[-_TAIL:])
        self._known = len(self._ids)  # ids whose text has been returned

    def feed(self, token: int) -> str:
        self._ids.append(token)
        before, after = self._texts()
        waiting = len(self._ids) - self._known
        if len(after) <= len(before) or (after.endswith("\N{REPLACEMENT CHARACTER}") and waiting < _WINDOW_HOLD):
            return ""
        self._ids = self._ids[self._known :]
        self._known = len(self._ids)
        return after[len(before) :]

    def finish(self) -> str:
        before, after = self._texts()
        return after[len(before) :]

    def _texts(self) -> tuple[str, str]:
        return self._names.decode(self._ids[: self._known]), self._names.decode(self._ids)
