"""Which peers hold which layers, drawn as one bar per peer over the units of a model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MAX_COLUMNS = 72
HELD, NOT_HELD, NOBODY = "█", "·", "!"


@dataclass(frozen=True, slots=True)
class Holding:
    """Units [start, stop) of a model at one peer."""

    peer: str  # its name, for the row
    start: int
    stop: int
    layers: str  # "embed+0:4"
    note: str = ""


@dataclass(frozen=True, slots=True)
class ModelMap:
    model: str  # its name
    layers: int  # decoder layers of the whole model
    holdings: tuple[Holding, ...]

    @property
    def units(self) -> int:
        return self.layers + 2


def maps_of(peers: Iterable[Mapping[str, Any]]) -> list[ModelMap]:
    """One map per model, from what `/shoal/v1/peers` says."""
    found: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for peer in peers:
        for item in peer["hosted"]:
            found.setdefault(item["model"], []).append((peer, item))
    maps = []
    for pairs in found.values():
        rows = [Holding(_name(peer), i["start"], i["stop"], i["layers"], i["dtype"]) for peer, i in pairs]
        rows.sort(key=lambda row: (row.start, row.stop, row.peer))
        first = pairs[0][1]
        maps.append(ModelMap(first["name"], first["of_layers"], tuple(rows)))
    return sorted(maps, key=lambda each: each.model)


def draw(model: ModelMap) -> list[str]:
    """The bars, then how many peers hold each unit; `!` where nobody does."""
    per_unit = max(1, min(3, MAX_COLUMNS // model.units))
    width = min(model.units * per_unit, MAX_COLUMNS)
    label = max([len("holders"), *(len(row.peer) for row in model.holdings)])
    lines = [f"{model.model}: embed, {model.layers} layers, head"]
    for row in model.holdings:
        bar = "".join(HELD if row.start <= unit < row.stop else NOT_HELD for unit in _units(model.units, width))
        lines.append(f"  {row.peer:{label}}  {bar}  {row.layers}  {row.note}".rstrip())
    lines.append(f"  {'holders':{label}}  {_counts(model, width, per_unit)}")
    return lines


def _units(units: int, width: int) -> Sequence[int]:
    """The unit that each column stands for."""
    return [column * units // width for column in range(width)]


def _counts(model: ModelMap, width: int, per_unit: int) -> str:
    """The smallest number of holders in each column, so that a gap is never hidden by its neighbours."""
    held = Counter(unit for row in model.holdings for unit in range(row.start, row.stop))
    if width == model.units * per_unit:
        cells = (_digit(held[unit]) for unit in range(model.units))
        return "".join(cell.ljust(per_unit) for cell in cells).rstrip()
    ends = [*_units(model.units, width), model.units]
    return "".join(_digit(min(held[u] for u in range(a, max(a + 1, b)))) for a, b in pairwise(ends))


def _digit(holders: int) -> str:
    return NOBODY if holders == 0 else str(holders) if holders < 10 else "+"


def _name(peer: Mapping[str, Any]) -> str:
    return f"{peer['name']} (this node)" if peer["me"] else str(peer["name"])
