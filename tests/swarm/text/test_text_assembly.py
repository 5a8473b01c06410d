from hypothesis import given, settings
from hypothesis import strategies as st
from novels_text import STORY, novels_model

from shoal.swarm.sessions.compute import Choice
from shoal.swarm.text.pieces import Piece
from shoal.swarm.text.text_assembly import TextAssembly

MODEL = novels_model()


def assembled(ids: tuple[int, ...], stops: tuple[str, ...] = (), logprobs: bool = False) -> list[Piece]:
    assembly = TextAssembly(MODEL, (), stops, logprobs)
    pieces = []
    for token in ids:
        piece = assembly.take(Choice(token, -1.0, ((token, -1.0), (3, -2.0)) if logprobs else ()))
        pieces += [piece] if piece else []
        if assembly.stopped:
            break
    last = assembly.finish()
    return [*pieces, last] if last else pieces


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def ids_of(pieces: list[Piece]) -> tuple[int, ...]:
    return tuple(token for piece in pieces for token in piece.ids)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 4095), max_size=40), st.lists(st.text("e th\ufffd", min_size=1, max_size=3), max_size=3))
def test_pieces_hold_the_text_before_the_stop_string_and_every_token_that_begins_in_it(
    drawn: list[int], stops: list[str]
) -> None:
    ids = tuple(drawn)
    pieces = assembled(ids, tuple(stops))
    whole = MODEL.decode(ids)
    assert whole.startswith(text_of(pieces))
    assert ids[: len(ids_of(pieces))] == ids_of(pieces)
    if not any(stop in whole for stop in stops):
        assert text_of(pieces) == whole
        assert ids_of(pieces) == ids


def test_a_stop_string_cuts_text_and_tokens_and_ends_the_stream() -> None:
    assembly = TextAssembly(MODEL, (), ["THE END"], logprobs=False)
    pieces = []
    for token in MODEL.encode(STORY):
        piece = assembly.take(Choice(token, 0.0))
        pieces += [piece] if piece else []
        if assembly.stopped:
            break
    assert text_of(pieces) == STORY[: STORY.index("THE END")]
    assert MODEL.decode(ids_of(pieces)).startswith(text_of(pieces))
    assert assembly.tokens > len(ids_of(pieces))
    assert assembly.finish() is None


def test_log_probabilities_carry_the_place_and_the_bytes_of_each_token() -> None:
    ids = MODEL.encode("say 😀!")
    tokens = [token for piece in assembled(ids, logprobs=True) for token in piece.logprobs]
    assert [token.id for token in tokens] == list(ids)
    assert b"".join(token.bytes for token in tokens).decode() == "say 😀!"
    emoji = [token for token in tokens if token.offset == 4]
    assert b"".join(token.bytes for token in emoji) == "😀".encode()
    assert tokens[-1].offset == 5
    assert [other.id for other in tokens[0].top] == [ids[0], 3]
    assert tokens[0].token == MODEL.token_bytes(ids[0]).decode()


def test_tokens_without_text_come_with_the_last_piece() -> None:
    pieces = assembled((40, 0, 0))
    assert ids_of(pieces) == (40, 0, 0)
    assert [piece.text for piece in pieces] == [MODEL.decode((40,)), ""]
