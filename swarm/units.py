"""The servable parts of a model as one line of units: embed, layer 0, ..., layer L-1, head.

Unit 0 is the embedding, unit 1 + i is decoder layer i, unit L + 1 is the final norm with the language-model head.
A `Span` is a half-open range of units; it is what a node hosts and what a session asks of a hop.
"""

import re
from typing import Any

import msgspec

_TEXT = re.compile(r"^(?:(embed)\+?)?(?:(\d+):(\d+))?(?:\+?(head))?$")


class Span(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Units [start, stop)."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a span needs 0 <= start < stop, got [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start

    def covers(self, other: "Span") -> bool:
        return self.start <= other.start and other.stop <= self.stop

    def intersects(self, other: "Span") -> bool:
        return self.start < other.stop and other.start < self.stop


def whole(layers: int) -> Span:
    """Every unit of a model with this many decoder layers."""
    return Span(0, layers + 2)


def has_embed(span: Span) -> bool:
    return span.start == 0


def has_head(span: Span, layers: int) -> bool:
    return span.stop == layers + 2


def layer_range(span: Span, layers: int) -> range:
    """The decoder layers in a span."""
    return range(max(0, span.start - 1), min(layers, span.stop - 1))


def describe(span: Span, layers: int) -> str:
    """`embed+0:4`, `4:8+head`, `embed`, `head`, `2:5`."""
    inside = layer_range(span, layers)
    parts = ["embed"] if has_embed(span) else []
    if inside:
        parts.append(f"{inside.start}:{inside.stop}")
    if has_head(span, layers):
        parts.append("head")
    return "+".join(parts)


def parse(text: str, layers: int) -> Span:
    """Read what `describe` writes; a bare `i:j` is layers only, `all` is everything.

    raises: ValueError with one line for the user
    """
    check_syntax(text)
    if text.strip() == "all":
        return whole(layers)
    embed, first, last, head = _parts(text)
    if first is not None and int(last) > layers:
        raise ValueError(f"layers {first}:{last} are out of range: the model has layers 0:{layers}")
    if embed and head and first is None and layers:
        raise ValueError("embed+head leaves a gap; name the layers between them")
    start = 0 if embed else (int(first) + 1 if first is not None else layers + 1)
    stop = layers + 2 if head else (int(last) + 1 if last is not None else 1)
    if head and last is not None and int(last) != layers:
        raise ValueError(f"{first}:{last}+head leaves a gap; head goes with layers up to {layers}")
    return Span(start, stop)


def check_syntax(text: str) -> None:
    """What `parse` would refuse whatever the model is. raises: ValueError with one line for the user"""
    if text.strip() == "all":
        return
    if not text.strip() or not _TEXT.match(text.strip()):
        raise ValueError(f"cannot read layers {text!r}: write all, embed, head, 0:4, embed+0:4 or 4:8+head")
    embed, first, last, _ = _parts(text)
    if first is not None and int(first) >= int(last):
        raise ValueError(f"layers {first}:{last} are none: the end, which is not included, must be above the start")
    if embed and first is not None and int(first) != 0:
        raise ValueError(f"embed+{first}:{last} leaves a gap; embed goes with layers from 0")


def _parts(text: str) -> tuple[Any, ...]:
    """embed, first layer, end, head; None for those that are not named."""
    match = _TEXT.match(text.strip())
    assert match is not None
    return match.groups()


def missing(whole_span: Span, held: list[Span]) -> list[Span]:
    """The parts of `whole_span` that no span in `held` covers, in order."""
    gaps, at = [], whole_span.start
    for span in sorted(held):
        if span.start > at:
            gaps.append(Span(at, min(span.start, whole_span.stop)))
        at = max(at, span.stop)
        if at >= whole_span.stop:
            return gaps
    gaps.append(Span(at, whole_span.stop))
    return gaps
