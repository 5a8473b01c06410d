"""Where each trainable tensor lies in the one flat float32 vector that replicas exchange.

The order depends on the names alone: what stands before the layers, the layers by number, the rest; inside each by
name. So a fragment, some consecutive layers, is one range of the vector.
"""

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shoal.compression.update_codec import Values


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """[start, stop) in the vector; group: 0 before the layers, 1 + layer, or last."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    group: int


@dataclass(frozen=True)
class ParameterLayout:
    places: tuple[TensorPlace, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> "ParameterLayout":
        """raises: ValueError when there is nothing to train"""
        layers = [number for name in shapes if (number := layer_number(name)) is not None]
        last = 2 + max(layers, default=-1)
        ordered = sorted(shapes, key=lambda name: (_group(name, last), name))
        places, start = [], 0
        for name in ordered:
            stop = start + math.prod(shapes[name])
            places.append(TensorPlace(name, tuple(shapes[name]), start, stop, _group(name, last)))
            start = stop
        if start == 0:
            raise ValueError("a model with nothing to train")
        return cls(tuple(places))

    @property
    def count(self) -> int:
        return self.places[-1].stop

    @cached_property
    def _starts(self) -> list[int]:
        return [place.start for place in self.places]

    def fragments(self, count: int) -> tuple[int, ...]:
        """The vector cut between layers into `count` ranges as even as that allows: their lengths.

        raises: ValueError when the model has fewer layers than that
        """
        edges = [p.stop for p, after in zip(self.places, self.places[1:], strict=False) if p.group != after.group]
        if not 1 <= count <= len(edges) + 1:
            raise ValueError(f"{count} fragments of a model that can be cut into at most {len(edges) + 1}")
        cuts: list[int] = []
        for index in range(1, count):
            left = edges.index(cuts[-1]) + 1 if cuts else 0
            candidates = edges[left : len(edges) - (count - 1 - index)]
            cuts.append(min(candidates, key=lambda edge: abs(edge - self.count * index / count)))
        return tuple(b - a for a, b in zip([0, *cuts], [*cuts, self.count], strict=True))

    def within(self, start: int, stop: int) -> tuple[TensorPlace, ...]:
        """The tensors of a range. raises: ValueError for a range that cuts a tensor"""
        first = bisect_left(self._starts, start)
        last = bisect_left(self._starts, stop)
        if first == last or self.places[first].start != start or self.places[last - 1].stop != stop:
            raise ValueError(f"[{start}, {stop}) does not consist of whole tensors")
        return self.places[first:last]

    def tensors(self, values: Values) -> dict[str, Values]:
        """Views of the vector, by name. raises: ValueError for a vector of another length"""
        if values.shape != (self.count,):
            raise ValueError(f"{values.shape} values for {self.count} parameters")
        return {place.name: values[place.start : place.stop].reshape(place.shape) for place in self.places}

    def undecayed(self) -> tuple[tuple[int, int], ...]:
        """Ranges of vectors and scalars such as norms, which weight decay leaves alone."""
        return tuple((place.start, place.stop) for place in self.places if len(place.shape) <= 1)

    def model_hash(self, config: Mapping[str, object], values: Values) -> str:
        """Hex sha256 of a model's config, its tensors' names and shapes, and their values."""
        described = {"config": config, "tensors": [(place.name, place.shape) for place in self.places]}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":"), default=str).encode())
        digest.update(np.ascontiguousarray(values, "<f4").data)
        return digest.hexdigest()


def layer_number(name: str) -> int | None:
    """The first number in a dotted name: `model.layers.3.mlp.up_proj.weight` is of layer 3."""
    return next((int(piece) for piece in name.split(".") if piece.isdecimal()), None)


def _group(name: str, last: int) -> int:
    number = layer_number(name)
    if number is not None:
        return 1 + number
    return 0 if any(word in name for word in ("embed", "wte", "wpe")) else last
