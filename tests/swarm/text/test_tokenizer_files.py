import json

import pytest
from novels_text import novels_files, novels_manifest, novels_model

from shoal.swarm.errors import UsageError
from shoal.swarm.text.tokenizer import TextModel


def test_end_of_text_ids_come_from_the_manifest_and_every_file_that_names_one() -> None:
    files = novels_files() | {"generation_config.json": b'{"eos_token_id": [7, 9]}'}
    assert TextModel.from_files(files, novels_manifest()).eos_ids == {0, 7, 9}


def test_a_special_token_may_be_named_in_the_special_tokens_map() -> None:
    files = novels_files() | {
        "tokenizer_config.json": b'{"chat_template": "{{ bos_token }}"}',
        "special_tokens_map.json": json.dumps({"bos_token": {"content": "<|endoftext|>"}}).encode(),
    }
    model = TextModel.from_files(files, novels_manifest())
    assert model.apply_chat_template([{"role": "user", "content": "x"}]) == (0,)


def test_a_tokenizer_of_another_model_is_named_as_such() -> None:
    with pytest.raises(UsageError, match="not the tokenizer of novels-6m: it has 4096 tokens, the model 1000"):
        TextModel.from_files(novels_files(), novels_manifest(vocabulary=1000))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": b""},
        {"tokenizer.json": b"{}"},
        {"tokenizer.json": b"\xff\x00"},
        {"tokenizer_config.json": b"[]"},
        {"tokenizer_config.json": b'{"chat_template": 3}'},
        {"tokenizer_config.json": b"{"},
        {"generation_config.json": b'{"eos_token_id": "two"}'},
        {"chat_template.jinja": b"\xff"},
    ],
)
def test_files_that_are_not_a_tokenizer_give_one_clear_error(files: dict[str, bytes]) -> None:
    given = (novels_files() | files) if files else {}
    with pytest.raises(UsageError, match="novels-6m"):
        TextModel.from_files(given, novels_manifest())


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(UsageError, match="surrogate"):
        novels_model().encode("a\ud800")


@pytest.mark.parametrize("token", [-1, 4096])
def test_an_id_without_embedding_is_refused(token: int) -> None:
    with pytest.raises(UsageError, match="ids 0 to 4095"):
        novels_model().checked([3, token])
