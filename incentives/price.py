"""What a position costs: one credit for each million parameters that it passes through, begun ones whole.

Both sides compute it from the manifest, so there is no price list and no haggling. In a mixture of experts every
expert counts, used or not: what is held in memory is what a volunteer gives.
"""

import re
from functools import lru_cache
from math import prod

from shoal.swarm.manifest import Manifest, TensorEntry
from shoal.swarm.units import Span

from .bodies import TICK_TOKENS

_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")
_EMBED = re.compile(r"embed|\bwte\b|\bwpe\b")
PARAMETERS_OF_A_CREDIT = 1_000_000


def _unit(tensor: TensorEntry, layers: int) -> int:
    layer = _LAYER.search("." + tensor.name)
    if layer:
        return 1 + int(layer[1])
    return 0 if _EMBED.search(tensor.name) and "embed_out" not in tensor.name else layers + 1


@lru_cache(maxsize=64)
def _parameters(tensors: tuple[TensorEntry, ...], layers: int) -> tuple[int, ...]:
    """Of each unit."""
    units = [0] * (layers + 2)
    for tensor in tensors:
        units[min(_unit(tensor, layers), layers + 1)] += prod(tensor.shape)
    return tuple(units)


def position_price(manifest: Manifest, span: Span) -> int:
    """Credits for one position through these units, at least 1."""
    parameters = sum(_parameters(manifest.tensors, manifest.layers)[span.start : span.stop])
    return max(1, -(-parameters // PARAMETERS_OF_A_CREDIT))


def tick_price(manifest: Manifest, span: Span) -> int:
    return TICK_TOKENS * position_price(manifest, span)
