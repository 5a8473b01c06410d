"""How the next token is chosen; travels from the driver to the hop that holds the head."""

import msgspec


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Greedy when `temperature` is 0. The draw for position p is a pure function of (`seed`, p): a replay equals it.

    raises: ValueError from `checked` when a value is out of range
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0  # of the most likely token's probability
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    top_logprobs: int = -1  # -1: no log-probabilities; 0: the chosen token's; n: n alternatives too

    @property
    def needs_history(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


MAX_TOP_LOGPROBS = 20


def checked(sampling: Sampling) -> Sampling:
    """raises: ValueError naming the parameter and its range"""
    ranges = (
        ("temperature", 0.0, 100.0),
        ("top_k", 0, 1 << 24),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("repetition_penalty", 0.01, 100.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
        ("seed", 0, (1 << 63) - 1),
        ("top_logprobs", -1, MAX_TOP_LOGPROBS),
    )
    for name, low, high in ranges:
        value = getattr(sampling, name)
        if not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low}, {high}], got {value}")
    if sampling.top_p == 0.0:
        raise ValueError("top_p must be greater than 0")
    return sampling


_fixed = msgspec.msgpack.Decoder(tuple[float, int, float, float, float, float, float, int, int])


def encoded(sampling: Sampling) -> bytes:
    """What is signed for, at most 80 bytes: equal values give equal bytes, and 1 and 1.0 are one value.

    As a `Sampling` travels, with names and without what was left out, neither holds.
    """
    return msgspec.msgpack.encode(
        [kind.type(getattr(sampling, kind.name)) for kind in msgspec.structs.fields(Sampling)]
    )


def decoded(data: bytes) -> Sampling:
    """raises: ValueError, also for values out of range"""
    return checked(Sampling(*_fixed.decode(data)))
