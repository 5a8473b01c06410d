"""GET /v1/models in OpenAI's shape, GET /shoal/v1/models in ours."""

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from shoal.swarm.sessions.generation import ServedModel
from shoal.swarm.text.model_choice import choose_model, public_names

from .gateway import Gateway
from .json_answer import json_answer


class ModelCard(msgspec.Struct):
    id: str  # what a request's `model` says
    object: str
    created: int
    owned_by: str
    max_model_len: int
    shoal: ServedModel


class ModelList(msgspec.Struct):
    object: str
    data: list[ModelCard]


class Models(msgspec.Struct):
    models: list[ServedModel]


def model_routes(gateway: Gateway) -> APIRouter:
    routes = APIRouter()
    created = int(gateway.unix_s())  # a swarm's models have no birthday; the field wants a number

    def card(name: str, model: ServedModel) -> ModelCard:
        return ModelCard(name, "model", created, "shoal", model.max_context, model)

    @routes.get("/v1/models")
    async def models() -> Response:
        names = public_names(await gateway.texts.models())
        return json_answer(ModelList("list", [card(name, model) for name, model in names.items()]))

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return json_answer(card(name, choose_model(await gateway.texts.models(), name, servable=False)))

    @routes.get("/shoal/v1/models")
    async def swarm_models() -> Response:
        return json_answer(Models(await gateway.texts.models()))

    return routes
