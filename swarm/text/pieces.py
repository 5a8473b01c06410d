"""What a generation hands out: pieces of text with the tokens they came from."""

import msgspec


class Alternative(msgspec.Struct, frozen=True):
    """A token that the model might have chosen."""

    id: int
    token: str  # its text; U+FFFD where its bytes are only a part of a character
    bytes: bytes
    logprob: float  # natural log


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token that the model chose."""

    id: int
    token: str
    bytes: bytes
    logprob: float
    top: tuple[Alternative, ...]  # most likely first
    offset: int  # characters of generated text before this token


class Piece(msgspec.Struct, frozen=True):
    """Some whole characters, and the tokens whose text begins in them."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()  # one per id when they were asked for


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int  # every token that was computed, those of a stop string too

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens
