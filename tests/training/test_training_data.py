import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from novels_text import novels_files

from shoal.node.training.data import documents, token_store
from shoal.node.training.data.data_files import find_files, hashed
from shoal.node.training.data.text_encoder import TokenizerEncoder
from shoal.node.training.data.token_store import TokenStore, open_store
from shoal.node.training.data.windows import Windows, document_positions
from shoal.swarm.errors import UsageError

TEXT = "It was a dark and stormy night; the naïve café-keeper said oh dear.\n"


@pytest.fixture(scope="module")
def encoder() -> TokenizerEncoder:
    return TokenizerEncoder.from_json(novels_files()["tokenizer.json"], 4096, 0, "novels-6m")


def store(folder: Path, encoder: TokenizerEncoder, *names: str, field: str = "text") -> TokenStore:
    files = hashed(find_files(names or (".",), folder, "data.files"), folder / "cache")
    return open_store(files, encoder, field, folder / "cache")


def words(tokens: TokenStore) -> str:
    from tokenizers import Tokenizer

    found = Tokenizer.from_str(novels_files()["tokenizer.json"].decode())
    return str(found.decode(tokens.tokens.tolist(), skip_special_tokens=True))


def test_text_jsonl_and_parquet_give_the_same_tokens(tmp_path: Path, encoder: TokenizerEncoder) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for kind in ("text", "jsonl", "parquet"):
        (tmp_path / kind).mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)
    (tmp_path / "jsonl" / "a.jsonl").write_text(json.dumps({"text": TEXT, "id": 1}) + "\n\n")
    parquet.write_table(pyarrow.table({"text": [TEXT, None], "id": [1, 2]}), tmp_path / "parquet" / "a.parquet")
    found = [store(tmp_path / kind, encoder) for kind in ("text", "jsonl", "parquet")]
    assert [each.facts.documents for each in found] == [1, 1, 1]
    assert words(found[0]) == TEXT
    for each in found:
        np.testing.assert_array_equal(each.tokens, found[0].tokens)
        assert each.tokens[-1] == encoder.end


def test_a_long_text_is_read_in_pieces_and_loses_nothing(
    tmp_path: Path, encoder: TokenizerEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(TEXT * 200)
    whole = store(tmp_path, encoder)
    monkeypatch.setattr(documents, "PIECE_BYTES", 101)
    monkeypatch.setattr(token_store, "PIECE_BYTES", 300)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "a.txt").write_text(TEXT * 200)
    pieces = store(tmp_path / "again", encoder)
    np.testing.assert_array_equal(whole.tokens, pieces.tokens)
    assert pieces.facts.documents == 1


def test_tokens_are_kept_on_disk_and_made_anew_when_they_are_damaged(tmp_path: Path, encoder: TokenizerEncoder) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    first = store(tmp_path, encoder)
    made = list((tmp_path / "cache").rglob("tokens.bin"))
    changed = made[0].stat().st_mtime_ns
    assert store(tmp_path, encoder).facts == first.facts
    assert made[0].stat().st_mtime_ns == changed
    whole = first.tokens.tolist()
    made[0].write_bytes(made[0].read_bytes()[:-2])
    assert store(tmp_path, encoder).tokens.tolist() == whole
    (tmp_path / "a.txt").write_text(TEXT * 2)
    assert store(tmp_path, encoder).facts.digest != first.facts.digest


def test_the_digest_does_not_depend_on_where_the_files_lie(tmp_path: Path, encoder: TokenizerEncoder) -> None:
    digests = set()
    for place, names in (("one", ("x.txt", "y.txt")), ("two", ("deep/b.txt", "a.txt"))):
        for name, text in zip(names, (TEXT, TEXT * 3), strict=True):
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).write_text(text)
        digests.add(store(tmp_path / place, encoder).facts.digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", b'{"text": "whole"}\n{"text": "cut o', "line 2 of .*a.jsonl is not JSON .*cut off"),
        ("a.jsonl", b'{"words": "x"}\n', "line 1 of .* has no text in 'text'; set data.field"),
        ("a.txt", "caf\u00e9".encode()[:-1], "a.txt is cut off in the middle of a character"),
        ("a.txt", b"\xff\xfe\x00x", "a.txt is not UTF-8 text"),
        ("a.txt", b" \n ", "there is no text in"),
        ("a.parquet", b"PAR1 and nothing more", "damaged or cut off"),
    ],
)
def test_damaged_files_are_told_with_name_and_place(
    tmp_path: Path, encoder: TokenizerEncoder, name: str, content: bytes, line: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=line):
        store(tmp_path, encoder)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_cut_off_parquet_file_is_told(tmp_path: Path, encoder: TokenizerEncoder) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [TEXT] * 100}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="cut off"):
        store(tmp_path, encoder)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, encoder: TokenizerEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="pip install pyarrow"):
        store(tmp_path, encoder)


def test_an_empty_folder_and_a_missing_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no text"):
        find_files(("empty",), tmp_path, "data.files")
    with pytest.raises(UsageError, match=r"there is no file or folder .*nowhere"):
        find_files(("nowhere",), tmp_path, "data.files")
    with pytest.raises(UsageError, match=r"no text, JSONL or Parquet file in \*.txt"):
        find_files(("*.txt",), tmp_path, "data.files")


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match="ids up to 4095, but tiny has a vocabulary of 512"):
        TokenizerEncoder.from_json(novels_files()["tokenizer.json"], 512, 0, "tiny")
    with pytest.raises(UsageError, match="cannot be read"):
        TokenizerEncoder.from_json(b"{}", 512, 0, "tiny")
    with pytest.raises(UsageError, match="end-of-text"):
        TokenizerEncoder.from_json(novels_files()["tokenizer.json"], 4096, None, "tiny")


def test_windows_predict_the_next_token_and_waste_none() -> None:
    windows = Windows(np.arange(26, dtype=np.uint16), 5, end=0)
    assert len(windows) == 5
    batch = windows.batch([4, 0])
    np.testing.assert_array_equal(batch.inputs, [[20, 21, 22, 23, 24], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
    assert batch.tokens == 10
    with pytest.raises(IndexError):
        windows.batch([5])
    with pytest.raises(UsageError, match="26 tokens, less than one sequence of 26"):
        Windows(np.arange(26, dtype=np.uint16), 26, end=0)


@given(st.lists(st.lists(st.integers(0, 3), min_size=9, max_size=9), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_positions_begin_again_with_every_document(rows: list[list[int]]) -> None:
    found = document_positions(np.array(rows), end=0)
    for row, positions in zip(rows, found.tolist(), strict=True):
        expected = 0
        for column, position in enumerate(positions):
            assert position == expected
            expected = 0 if row[column] == 0 else expected + 1
