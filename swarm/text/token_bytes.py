"""The bytes that each token stands for, read from the decoder that a tokenizer.json describes.

Nearly every decoder-only model uses one of two schemes, and in both a token is a fixed byte string, so text can
be built token by token without decoding anything twice:

- byte-level BPE (GPT-2, Llama 3, Qwen, OLMo, Phi-2): each character of a token names one byte;
- sentencepiece (Llama 2, Mistral, Gemma, Phi-3): U+2581 is a space, `<0x0A>` is a byte, and the very first token
  of a text may lose its leading space.

`rules_of` returns None for any other decoder; `WindowDetokenizer` serves those.
"""

from dataclasses import dataclass
from typing import Any

import msgspec


class _AddedToken(msgspec.Struct):
    id: int
    special: bool = False


class _TokenizerFile(msgspec.Struct):
    decoder: dict[str, Any] | None = None
    added_tokens: list[_AddedToken] = []


@dataclass(frozen=True, slots=True)
class TokenRules:
    """How a token's name becomes bytes."""

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()  # applied in order to a token that is not a byte
    byte_fallback: bool = False
    strip: int = 0  # spaces dropped at the start of a whole text
    first_drops: str = ""  # a character dropped wherever it stands in the first token of a whole text


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes.

    source: Radford et al., Language Models are Unsupervised Multitask Learners (2019), encoder.py
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_characters()


def special_ids(tokenizer_json: bytes) -> frozenset[int]:
    """Ids that stand for structure, not for text."""
    file = msgspec.json.decode(tokenizer_json, type=_TokenizerFile)
    return frozenset(token.id for token in file.added_tokens if token.special)


def rules_of(tokenizer_json: bytes) -> TokenRules | None:
    """raises: msgspec.MsgspecError when this is not a tokenizer.json"""
    decoder = msgspec.json.decode(tokenizer_json, type=_TokenizerFile).decoder
    if decoder is None:
        return None
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    match [step.get("type") for step in steps]:
        case ["ByteLevel"] | ["ByteLevel", "Fuse"]:
            return TokenRules(byte_level=True)
        case ["Metaspace"]:
            mark = steps[0]["replacement"]
            scheme = steps[0].get("prepend_scheme", "always" if steps[0].get("add_prefix_space", True) else "never")
            return TokenRules(replacements=((mark, " "),), first_drops="" if scheme == "never" else mark)
        case _:
            return _sentencepiece(steps)


def _sentencepiece(steps: list[dict[str, Any]]) -> TokenRules | None:
    """Replace*, ByteFallback, Fuse and at most one Strip of leading spaces, in this order."""
    order = ["Replace", "ByteFallback", "Fuse", "Strip"]
    kinds = [step.get("type") for step in steps]
    if any(kind not in order for kind in kinds) or kinds != sorted(kinds, key=lambda kind: order.index(str(kind))):
        return None
    if "ByteFallback" not in kinds or "Fuse" not in kinds:
        return None
    replacements: list[tuple[str, str]] = []
    strip = 0
    for step in steps:
        if step["type"] == "Replace":
            pattern = step["pattern"].get("String")
            if not pattern:
                return None
            replacements.append((pattern, step["content"]))
        elif step["type"] == "Strip":
            if step["content"] != " " or step["stop"] or strip:
                return None
            strip = step["start"]
    return TokenRules(replacements=tuple(replacements), byte_fallback=True, strip=strip)


def token_bytes(name: str, rules: TokenRules) -> bytes:
    """A token's bytes in the middle of a text."""
    if rules.byte_level:
        try:
            return bytes([BYTE_OF[character] for character in name])
        except KeyError:  # an added token is written as it is
            return name.encode()
    if rules.byte_fallback and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        try:
            return bytes([int(name[3:5], 16)])
        except ValueError:
            return name.encode()
    for old, new in rules.replacements:
        name = name.replace(old, new)
    return name.encode()
