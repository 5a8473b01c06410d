"""How a model is cut into stages: which units each of them holds, and where the head stands.

A head that shares its matrix with the embedding cannot stand on another machine than the embedding: the gradients of
both belong to one tensor. In that case stage 0 holds both ends of the model, and what the last stage computes goes home
to the peer that the microbatch began at. So tied weights are exact with any number of replicas, and nothing beside
activations has to be exchanged within a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.swarm.units import Span, describe, parse, whole


@dataclass(frozen=True, slots=True)
class StagePlan:
    """spans: of consecutive units, one a stage, together all of the model; tied: stage 0 holds the head too"""

    layers: int
    spans: tuple[Span, ...]
    tied: bool

    @property
    def count(self) -> int:
        return len(self.spans)

    def units(self, stage: int) -> tuple[Span, ...]:
        """What a replica of this stage holds, in the order of the model."""
        head = self.layers + 1
        span = self.spans[stage]
        if not self.tied or self.count == 1:
            return (span,)
        if stage == 0:
            return span, Span(head, head + 1)
        return (Span(span.start, min(span.stop, head)),)

    def describe(self, stage: int) -> str:
        """`embed+0:4`, `4:8`, `8:12+head`."""
        return "+".join(describe(span, self.layers) for span in self.units(stage))

    def named(self, stage: int) -> str:
        """For the user: `stage 2 of 0 to 2 (layers 8:12+head)`."""
        return f"stage {stage} of 0 to {self.count - 1} (layers {self.describe(stage)})"

    @property
    def head_at_home(self) -> bool:
        """Whether the loss is computed by the peer that the microbatch began at."""
        return self.tied or self.count == 1


def even_plan(layers: int, stages: int, *, tied: bool) -> StagePlan:
    """As many layers for each as that allows; those in the middle get the rest, as they have neither end to hold.

    raises: ValueError with one line for the user
    """
    if stages < 1:
        raise ValueError(f"{stages} stages")
    if stages > layers:
        raise ValueError(f"{stages} stages of a model with {layers} layers; each stage holds at least one")
    sizes = [layers // stages] * stages
    takers = [*range(1, stages - 1), 0, stages - 1]
    for taker in takers[: layers % stages]:
        sizes[taker] += 1
    spans, at = [], 1
    for stage, size in enumerate(sizes):
        start, at = (0 if stage == 0 else at), at + size
        spans.append(Span(start, at + 1 if stage == stages - 1 else at))
    return StagePlan(layers, tuple(spans), tied)


def named_plan(layers: int, names: Sequence[str], *, tied: bool) -> StagePlan:
    """names: as of `shoal up --layers`, such as `embed+0:4`. raises: ValueError with one line for the user"""
    spans = tuple(parse(name, layers) for name in names)
    ends = [0, *(span.stop for span in spans)]
    for span, end, name in zip(spans, ends, names, strict=False):
        if span.start != end:
            raise ValueError(f"{name!r} does not begin where the stage before it ends")
        if not set(range(span.start, span.stop)) & set(range(1, layers + 1)):
            raise ValueError(f"{name!r} holds no layer; each stage holds at least one")
    if not spans or spans[-1].stop != whole(layers).stop:
        raise ValueError("the last stage does not end with the head")
    return StagePlan(layers, spans, tied)
