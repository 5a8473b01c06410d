"""The OpenAI-compatible gateway as an ASGI application; whoever binds a socket to it is not its business."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from shoal.swarm.client.error_codes import NOT_FOUND, Fault
from shoal.swarm.errors import ShoalError
from shoal.swarm.sessions.generation import TokenSource
from shoal.swarm.text.text_source import TextSource

from .auth import KeyGuard
from .chat_completions import chat_routes
from .completions import completion_routes
from .control import NodeControl, control_routes
from .errors import ApiError, error_response
from .gateway import Gateway
from .gateway_metrics import GatewayMetrics
from .json_answer import json_answer
from .kv import KvHost, kv_routes
from .model_routes import model_routes
from .publishing import Publisher, publishing_routes
from .request_count import RequestCount
from .training import TrainingHost, training_routes
from .weights import WeightsHost, weights_routes


def _unix_time() -> float:
    return datetime.now(UTC).timestamp()


def _nothing() -> Mapping[str, Any]:
    return {}


def create_app(
    source: TokenSource,
    api_key: str,
    info: Callable[[], Mapping[str, Any]] = _nothing,
    control: NodeControl | None = None,
    metrics: GatewayMetrics | None = None,
    unix_s: Callable[[], float] = _unix_time,
    publisher: Publisher | None = None,
    trainings: TrainingHost | None = None,
    weights: WeightsHost | None = None,
    kv: KvHost | None = None,
) -> FastAPI:
    """info: what /health may tell anybody, without a key.

    control: adds /shoal/v1/status, peers, invites and shutdown
    publisher: adds /shoal/v1/publications
    trainings: adds /shoal/v1/training
    weights: adds /shoal/v1/weights
    kv: adds /shoal/v1/kv
    """
    gateway = Gateway(TextSource(source), metrics or GatewayMetrics(), unix_s)
    app = FastAPI(title="shoal", openapi_url=None)  # its pages of documentation load scripts from strangers

    @app.get("/health")
    async def health() -> Response:
        return json_answer({"status": "ok", **info()})

    @app.get("/metrics")
    async def exposition() -> Response:
        return Response(gateway.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    for routes in (completion_routes(gateway), chat_routes(gateway), model_routes(gateway)):
        app.include_router(routes)
    if control is not None:
        app.include_router(control_routes(control))
    if publisher is not None:
        app.include_router(publishing_routes(publisher))
    if trainings is not None:
        app.include_router(training_routes(trainings))
    if weights is not None:
        app.include_router(weights_routes(weights))
    if kv is not None:
        app.include_router(kv_routes(kv))
    _answer_errors(app)
    app.add_middleware(KeyGuard, key=api_key)
    app.add_middleware(RequestCount, metrics=gateway.metrics)
    return app


def _answer_errors(app: FastAPI) -> None:
    async def ours(request: Request, error: Exception) -> Response:
        chat = request.url.path.endswith("/chat/completions")
        return error_response(error, "messages" if chat else "prompt")

    async def routing(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        reason = "no such route" if status == NOT_FOUND.status else "not here"
        fault = Fault(status, NOT_FOUND.type, "not_found" if status == NOT_FOUND.status else "method_not_allowed")
        return error_response(ApiError(f"{reason}: {request.method} {request.url.path}", fault))

    async def gone(_: Request, __: Exception) -> Response:
        return Response(status_code=499)

    for kind in (ShoalError, ApiError, Exception):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(ClientDisconnect, gone)
