"""Text to ids and back for one model, from the small files that its manifest names.

Only the `tokenizers` library and a sandboxed jinja2 are used: a client that speaks text needs neither torch
nor transformers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import tokenizers

from shoal.swarm.errors import UsageError
from shoal.swarm.manifest import Manifest

from .chat_template import ChatTemplate, Message, read_template
from .detokenizer import Detokenizer, TokenTable
from .token_bytes import rules_of, special_ids

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TextModel:
    """raises from `from_files`: UsageError when the files are not a tokenizer, or not this model's"""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, table: TokenTable, template: ChatTemplate, manifest: Manifest
    ) -> None:
        self._tokenizer = tokenizer
        self._table = table
        self._prefix: tuple[int, ...] = ()  # a BOS that the post-processor does not add
        self.template = template
        self.vocabulary = manifest.vocabulary
        self.max_context = manifest.max_context
        self.eos_ids = frozenset(manifest.eos_ids)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], manifest: Manifest) -> "TextModel":
        data = files.get("tokenizer.json")
        if data is None:
            raise UsageError(f"{manifest.name} has no tokenizer.json: it takes and gives token ids only")
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(data)
            table = TokenTable(tokenizer, rules_of(data), special_ids(data))
            config = _object(files, "tokenizer_config.json")
            special = _special_tokens(config, _object(files, "special_tokens_map.json"))
            jinja_file = files.get("chat_template.jinja")
            template = read_template(config, None if jinja_file is None else jinja_file.decode(), special)
            eos = _ids(_object(files, "generation_config.json").get("eos_token_id"))
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, LookupError, TypeError) as error:
            raise UsageError(f"cannot read the tokenizer of {manifest.name}: {error}") from error
        size = tokenizer.get_vocab_size(with_added_tokens=False)
        if size > manifest.vocabulary:
            raise UsageError(
                f"not the tokenizer of {manifest.name}: it has {size} tokens, the model {manifest.vocabulary}"
            )
        model = cls(tokenizer, table, template, manifest)
        by_name = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
        model.eos_ids |= eos | (frozenset() if by_name is None else {by_name})
        model._prefix = _missing_bos(tokenizer, config, special)
        return model

    def encode(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Ids of a text, with BOS where the model's tokenizer asks for one.

        raises: UsageError for text that is not Unicode (half of a surrogate pair)
        """
        try:
            ids = tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError as error:
            raise UsageError("the text holds half of a surrogate pair, which no tokenizer can read") from error
        if add_special_tokens and ids[: len(self._prefix)] != self._prefix:
            ids = self._prefix + ids
        return ids

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Ids of a conversation; a template writes its own BOS, the plain fallback gets the tokenizer's.

        raises: UsageError
        """
        text = self.template.render(messages, tools, add_generation_prompt, options)
        return self.encode(text, add_special_tokens=self.template.plain)

    def detokenizer(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """One that continues `prompt`, whose text it does not repeat."""
        return self._table.detokenizer(prompt)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens left out."""
        pieces = self.detokenizer()
        return "".join([*map(pieces.feed, ids), pieces.finish()])

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for, a special token's name too; b"" for ids without a token."""
        return self._table.literal(token)

    def checked(self, ids: Sequence[int]) -> tuple[int, ...]:
        """raises: UsageError for an id that the model has no embedding for"""
        for token in ids:
            if not 0 <= token < self.vocabulary:
                raise UsageError(f"token id {token} is out of range: the model has ids 0 to {self.vocabulary - 1}")
        return tuple(ids)


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    data = files.get(name)
    return {} if data is None else msgspec.json.decode(data, type=dict[str, Any])


def _special_tokens(config: Mapping[str, Any], tokens_map: Mapping[str, Any]) -> dict[str, str]:
    """`{"bos_token": "<s>", ...}`; both files write a token as a string or as an object with `content`."""
    found = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name) or tokens_map.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _ids(value: object) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset(msgspec.convert([value] if isinstance(value, int) else value, list[int]))


def _missing_bos(
    tokenizer: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]
) -> tuple[int, ...]:
    """Some models say `add_bos_token` in tokenizer_config.json and leave it out of tokenizer.json."""
    if config.get("add_bos_token") is not True or "bos_token" not in special:
        return ()
    bos = tokenizer.token_to_id(special["bos_token"])
    return () if bos is None or tokenizer.encode("a").ids[:1] == [bos] else (bos,)
