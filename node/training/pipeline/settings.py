"""The `[pipeline]` table of a config: a model in stages, each held by other nodes."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class PipelineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """stages: 1 for a model in one piece; spans: which units each of them holds, such as "embed+0:4"; empty: even

    stage: the one that this node holds; auto: the one with the fewest replicas
    wire: how activations and their gradients travel
    in_flight: microbatches of one driver on their way at once, 0 for twice as many as stages
    deadline_s: for a microbatch at one stage, its way there included
    untie: give a head that shares its matrix with the embedding one of its own
    """

    stages: Annotated[int, Meta(ge=1, le=256)] = 1
    spans: tuple[str, ...] = ()
    stage: Annotated[int, Meta(ge=0, lt=256)] | Literal["auto"] = "auto"
    wire: Literal["float32", "bfloat16", "int8"] = "bfloat16"
    in_flight: Annotated[int, Meta(ge=0, le=1024)] = 0
    deadline_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    untie: bool = False

    @property
    def cut(self) -> bool:
        """Whether there is more than one stage."""
        return self.stages > 1

    def check(self) -> None:
        """raises: ValueError that names the key"""
        if self.spans and len(self.spans) != self.stages:
            raise ValueError(f"spans names {len(self.spans)} stages and stages says {self.stages}")
        if self.stage != "auto" and self.stage >= self.stages:
            raise ValueError(f"stage is {self.stage}; the stages are 0 to {self.stages - 1}")


def stage_run(name: str, stage: int) -> str:
    """The name of the run that the replicas of one stage have among themselves."""
    return f"{name}/stage-{stage}"


def place_run(name: str, stage: int) -> str:
    """Who holds a stage, or is about to: under this name others find it before it is ready."""
    return f"{name}/place-{stage}"
