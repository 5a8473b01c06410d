import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novels_text import STORY, novels_files, novels_manifest, novels_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from shoal.swarm.text.detokenizer import WindowDetokenizer
from shoal.swarm.text.token_bytes import rules_of
from shoal.swarm.text.tokenizer import TextModel

EMOJI = "👩‍🚀😀é漢"
WORDS = ["▁", "▁the", "▁a", "the", "▁▁", "n", "o", "é", "漢"]


@cache
def reference() -> Tokenizer:
    return Tokenizer.from_buffer(novels_files()["tokenizer.json"])


@cache
def embedded() -> TextModel:
    return novels_model()


@cache
def sentencepiece(strip: bool) -> tuple[TextModel, Tokenizer]:
    """A tokenizer of the shape of Llama 2's: special tokens, 256 bytes, pieces with U+2581 for a space."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = models.BPE({name: n for n, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    return TextModel.from_files(files, novels_manifest(vocabulary=len(names))), tokenizer


def pieces(model: TextModel, ids: list[int], prompt: tuple[int, ...] = ()) -> list[str]:
    stream = model.detokenizer(prompt)
    return [*(stream.feed(token) for token in ids), stream.finish()]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 4200), max_size=60))
def test_pieces_of_any_byte_level_ids_join_to_what_tokenizers_decodes(ids: list[int]) -> None:
    assert "".join(pieces(embedded(), ids)) == reference().decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_text_survives_encoding_and_piecewise_decoding(text: str) -> None:
    ids = list(embedded().encode(text))
    assert "".join(pieces(embedded(), ids)) == text


def test_no_piece_of_a_split_emoji_holds_a_part_of_a_character() -> None:
    ids = list(embedded().encode(EMOJI))
    assert len(ids) > len(EMOJI)
    parts = pieces(embedded(), ids)
    assert "".join(parts) == EMOJI
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)
    assert "" in parts[:-1]


def test_bytes_that_never_become_a_character_become_one_replacement_character() -> None:
    half = list(embedded().encode("😀"))[:-1]
    letter = embedded().encode("x")[0]
    assert "".join(pieces(embedded(), [*half, letter])) == "\N{REPLACEMENT CHARACTER}x"
    assert pieces(embedded(), half)[-1] == "\N{REPLACEMENT CHARACTER}"


def test_a_character_that_begins_in_the_prompt_is_finished_whole() -> None:
    ids = embedded().encode("so 😀")
    assert "".join(pieces(embedded(), [ids[-1]], ids[:-1])) == "😀"


def test_special_tokens_and_ids_without_a_token_are_silent() -> None:
    assert pieces(embedded(), [0, 5000]) == ["", "", ""]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 2) | st.integers(259, 259 + len(WORDS) - 1) | st.sampled_from("漢é😀 \n"), max_size=40))
@pytest.mark.parametrize("strip", [True, False])
def test_sentencepiece_pieces_join_to_what_tokenizers_decodes(strip: bool, drawn: list[int | str]) -> None:
    model, tokenizer = sentencepiece(strip)
    ids: list[int] = []
    for item in drawn:  # a character stands for its byte tokens, so that byte runs are valid UTF-8
        ids += [item] if isinstance(item, int) else [3 + byte for byte in item.encode()]
    expected = tokenizer.decode(ids)
    assert "".join(pieces(model, ids)) == expected == model.decode(ids)


def test_an_invalid_byte_run_keeps_its_valid_characters() -> None:
    """tokenizers itself would turn the emoji into four replacement characters as well."""
    model, _ = sentencepiece(True)
    ids = [3 + byte for byte in "😀".encode() + b"\xff"]
    assert "".join(pieces(model, ids)) == "😀\N{REPLACEMENT CHARACTER}"


def test_the_leading_space_is_dropped_at_the_start_of_a_text_only() -> None:
    model, tokenizer = sentencepiece(True)
    the = tokenizer.token_to_id("▁the")
    assert "".join(pieces(model, [the, the])) == "the the"
    assert "".join(pieces(model, [the, the], prompt=(1,))) == "the the"  # after BOS it is still the start
    assert "".join(pieces(model, [the, the], prompt=(1, the))) == " the the"


def test_metaspace_and_wordpiece_decoders_are_followed() -> None:
    words = {"[UNK]": 0, "▁un": 1, "der": 2, "▁it": 3}
    spaced = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    spaced.decoder = decoders.Metaspace()
    model = TextModel.from_files({"tokenizer.json": spaced.to_str().encode()}, novels_manifest())
    assert "".join(pieces(model, [1, 2, 3])) == spaced.decode([1, 2, 3]) == "under it"
    assert "".join(pieces(model, [1, 2], prompt=(3,))) == " under"

    split = Tokenizer(models.WordPiece({"[UNK]": 0, "un": 1, "##der": 2, "it": 3}, unk_token="[UNK]"))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    split.decoder = decoders.WordPiece()
    assert rules_of(split.to_str().encode()) is None
    model = TextModel.from_files({"tokenizer.json": split.to_str().encode()}, novels_manifest())
    assert "".join(pieces(model, [1, 2, 3, 1])) == split.decode([1, 2, 3, 1]) == "under it un"
    assert "".join(pieces(model, [2, 3], prompt=(1,))) == "der it"


def test_the_window_detokenizer_agrees_where_the_text_is_valid() -> None:
    ids = list(embedded().encode(STORY + EMOJI))
    stream = WindowDetokenizer(reference(), ())
    parts = [*(stream.feed(token) for token in ids), stream.finish()]
    assert "".join(parts) == STORY + EMOJI
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


def test_an_unfamiliar_order_of_decoder_steps_is_not_guessed() -> None:
    steps = [
        {"type": "Fuse"},
        {"type": "ByteFallback"},
        {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
    ]
    data = json.dumps({"decoder": {"type": "Sequence", "decoders": steps}}).encode()
    assert rules_of(data) is None
