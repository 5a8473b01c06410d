"""A token source without a swarm: it says what it is told to. The simulated side of the `TokenSource` seam.

Greedy requests get the script's ids; sampled ones get ids that are a pure function of (seed, position), as a
real driver's are. Log-probabilities are made up by the same rule.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel

from shoal.swarm.errors import ModelNotServable
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.manifest import Manifest, model_id
from shoal.swarm.sessions.compute import Choice
from shoal.swarm.sessions.generation import FinishReason, Route, RouteHop, ServedModel, TokenRequest

Script = Callable[[TokenRequest], Iterable[int | BaseException]]


def draw(seed: int, position: int, below: int) -> int:
    """A number in [0, below) that depends on nothing else."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % below


@dataclass(slots=True)
class ScriptedModel:
    manifest: Manifest
    files: Mapping[str, bytes]
    script: Script  # an exception in it is raised at its place
    missing: str = ""

    @property
    def id(self) -> ModelId:
        return model_id(self.manifest)

    @property
    def served(self) -> ServedModel:
        made_of = self.manifest
        return ServedModel(
            self.id, made_of.name, made_of.layers, made_of.max_context, (made_of.dtype,), 1, self.missing
        )


@dataclass(slots=True)
class ScriptedStream:
    """One session; `yields` tokens until the script, the budget or a stop id ends it."""

    request: TokenRequest
    model: ScriptedModel
    step_s: float
    route: Route = field(default_factory=Route)
    finish_reason: FinishReason | None = None
    given: int = 0

    async def __aiter__(self) -> AsyncIterator[Choice]:
        request = self.request
        for step in self.model.script(request):
            await (anyio.sleep(self.step_s) if self.step_s else anyio.lowlevel.checkpoint())
            if isinstance(step, BaseException):
                raise step
            token = self._sampled(self.given) if request.sampling.temperature else step
            if token in request.stop_ids:
                self.finish_reason = "stop"
                break
            self.given += 1
            yield self._choice(token)
            if self.given == request.max_new_tokens:
                self.finish_reason = "length"
                break
        self.finish_reason = self.finish_reason or "stop"
        whole = RouteHop(PeerId("12D3KooWScripted"), "scripted", "embed+0:8+head", self.given, 1.0, 0.0)
        self.route.hops.append(whole)

    def _sampled(self, position: int) -> int:
        return draw(self.request.sampling.seed, position, self.model.manifest.vocabulary)

    def _choice(self, token: int) -> Choice:
        wanted = self.request.sampling.top_logprobs
        if wanted < 0:
            return Choice(token, 0.0)
        others = [(token + 1 + n) % self.model.manifest.vocabulary for n in range(wanted)]
        ranked = [token, *others][:wanted]
        return Choice(token, -0.5, tuple((each, -0.5 - rank) for rank, each in enumerate(ranked)))


class ScriptedSource:
    """Counts its open sessions, so that a test can see a cancellation."""

    def __init__(self, models: Sequence[ScriptedModel], step_s: float = 0.0) -> None:
        self._models = {model.id: model for model in models}
        self._step_s = step_s
        self.requests: list[TokenRequest] = []
        self.streams: list[ScriptedStream] = []
        self.open_sessions = 0

    @asynccontextmanager
    async def generate(self, request: TokenRequest) -> AsyncIterator[ScriptedStream]:
        self.requests.append(request)
        stream = ScriptedStream(request, self._found(request.model), self._step_s)
        self.streams.append(stream)
        self.open_sessions += 1
        self.session_changed()
        try:
            yield stream
        finally:
            self.open_sessions -= 1
            stream.finish_reason = stream.finish_reason or "cancelled"
            self.session_changed()

    def session_changed(self) -> None:
        """Called when a session has opened or closed; a test may override it."""

    async def models(self) -> list[ServedModel]:
        return [model.served for model in self._models.values()]

    async def manifest(self, model: ModelId) -> Manifest:
        return self._found(model).manifest

    async def text_files(self, model: ModelId) -> dict[str, bytes]:
        return dict(self._found(model).files)

    def _found(self, model: ModelId) -> ScriptedModel:
        if model not in self._models:
            raise ModelNotServable(f"no model {model}")
        return self._models[model]
