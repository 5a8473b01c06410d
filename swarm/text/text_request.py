"""What a caller who speaks text asks for; the same value for the HTTP gateway and the Python client."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.swarm.identifiers import PeerId
from shoal.swarm.sampling import Sampling
from shoal.swarm.sessions.generation import Exactness

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class TextRequest:
    """Exactly one of `prompt` (text or ids) and `messages` is given."""

    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()  # JSON schemas, for the model's template
    template_options: Mapping[str, Any] | None = None  # further variables of the template
    model: str | None = None  # name or id; None: the only servable one
    max_tokens: int | None = None  # None: until the model stops or its context is full
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()  # besides the model's own end-of-text ids
    ignore_eos: bool = False
    local_layers: int = 0
    max_hops: int = 8
    exclude: frozenset[PeerId] = frozenset()
    trust: frozenset[PeerId] = frozenset()
    prefill: str = "auto"  # these three as in `generation.TokenRequest`
    share_prefix: bool = False
    session: str = ""
    exactness: Exactness = "replay"
    keep_snapshots: bool = False
