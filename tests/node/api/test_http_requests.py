"""Raw requests that no well-behaved client sends, and the routes that are shoal's own."""

import json
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from novels_text import repeats, scripted_novels
from starlette.testclient import TestClient

from shoal.node.api.app import create_app
from shoal.node.api.request_body import MAX_BODY_BYTES
from shoal.swarm.errors import Refused
from shoal.swarm.identifiers import PeerId

KEY = "a-key-for-tests-only"
LONG = 15000.0


class Peer(msgspec.Struct):
    id: str
    layers: str


class Node:
    """A node that remembers what it was told."""

    def __init__(self) -> None:
        self.stopped = False
        self.invited: list[tuple[float, str]] = []

    async def status(self) -> dict[str, Any]:
        return {"name": "ada", "public": False}

    async def peers(self) -> list[Peer]:
        return [Peer("12D3A", "embed+0:4")]

    async def invites(self) -> list[dict[str, Any]]:
        return [{"id": "i1"}]

    async def create_invite(self, ttl_s: float, name: str) -> dict[str, Any]:
        self.invited.append((ttl_s, name))
        return {"id": "i2", "invite": "shoal:abc"}

    async def revoke_invite(self, invite: str) -> bool:
        return invite == "i1"

    async def revoke_peer(self, peer: PeerId) -> bool:
        if peer == "owner":
            raise Refused("the owner cannot be revoked")
        return peer == "12D3A"

    async def shutdown(self, drain_s: float | None) -> None:
        self.stopped = True


@pytest.fixture(scope="module")
def node() -> Node:
    return Node()


@pytest.fixture(scope="module")
def http(node: Node) -> TestClient:
    app = create_app(scripted_novels(repeats()), KEY, lambda: {"version": "1.2"}, node, unix_s=lambda: 1234.5)
    return TestClient(app, raise_server_exceptions=False, headers={"authorization": f"Bearer {KEY}"})


def fault(response: httpx.Response) -> tuple[int, str | None, str | None]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "Traceback" not in response.text
    return response.status_code, body["error"]["param"], body["error"]["code"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": [[3], "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [4096]}, None),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperature": True}, "temperature"),
        ({"prompt": "a", "top_p": 1.5}, "top_p"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "top_k": -2}, "top_k"),
        ({"prompt": "a", "presence_penalty": 3}, "presence_penalty"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "n": 129}, "n"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": "a", "n": 1, "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "stop": 3}, "stop"),
        ({"prompt": "a", "stop": [""]}, "stop"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": 1, "echo": True}, "logprobs"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "local_layers": -1}, "local_layers"),
        ({"prompt": "a", "max_hops": 0}, "max_hops"),
        ({"prompt": "a", "exclude": "everybody"}, "exclude"),
        ({"prompt": "a", "exclude": ["x"]}, "exclude"),
        ({"prompt": "a", "trust": ["x"]}, "trust"),
        ({"prompt": "a", "trust": []}, "trust"),
        ({"prompt": "a", "prefill": "sometimes"}, "prefill"),
        ({"prompt": "a", "seed": "x"}, "seed"),
        ({"prompt": "a", "model": 3}, "model"),
    ],
)
def test_a_bad_field_of_a_completion_is_named(http: TestClient, body: dict[str, Any], param: str | None) -> None:
    status, blamed, _ = fault(http.post("/v1/completions", json={"model": "novels-6m"} | body))
    assert (status, blamed) == (400, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"content": "hi"}]}, None),
        ({"messages": [{"role": "user", "content": 3}]}, None),
        ({"messages": [{"role": "user", "content": ""}]}, None),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}, "tool_choice"),
        (
            {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": "9"}, "max_completion_tokens"),
    ],
)
def test_a_bad_field_of_a_chat_is_named(http: TestClient, body: dict[str, Any], param: str | None) -> None:
    status, blamed, _ = fault(http.post("/v1/chat/completions", json=body))
    assert (status, blamed) == (400, param)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"prompt": "\xff", "messages": "\xff", "name": "\xff"}', b"[" * 100000],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/shoal/v1/invites"])
def test_a_body_that_is_not_the_json_of_an_object_answers_400(http: TestClient, path: str, body: bytes) -> None:
    if path.startswith("/shoal") and not body:
        return  # an invite needs no wishes
    expected = 413 if path.startswith("/shoal") and len(body) > 4096 else 400
    assert fault(http.post(path, content=body))[0] == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["prompt", "messages", "n", "stop", "seed", "logprobs", "stream", "tools", "exclude"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
            max_leaves=6,
        ),
        max_size=4,
    )
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_any_json_gets_an_answer_or_a_fault_of_the_caller(http: TestClient, path: str, body: dict[str, Any]) -> None:
    response = http.post(path, content=json.dumps({"max_tokens": 2} | body))
    if response.status_code != 200:
        assert fault(response)[0] == 400


def test_a_request_beyond_the_limit_answers_413_declared_or_not(http: TestClient) -> None:
    big = b" " * (MAX_BODY_BYTES + 1)
    assert fault(http.post("/v1/completions", content=big))[0] == 413
    chunks = (big[at : at + 65536] for at in range(0, len(big), 65536))
    assert fault(http.post("/v1/completions", content=chunks))[0] == 413


def test_nothing_but_health_answers_without_the_key(http: TestClient) -> None:
    paths = ["/metrics", "/v1/models", "/shoal/v1/status", "/shoal/v1/models", "/nowhere", "/health/"]
    for value in (b"", b"Bearer wrong", KEY.encode(), b"Basic " + KEY.encode(), b"Bearer \xe9"):
        headers = {b"authorization": value} if value else {}
        stranger = TestClient(http.app, headers=headers)  # type: ignore[arg-type]
        for path in paths:
            response = stranger.get(path)
            assert fault(response) == (401, None, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        assert stranger.get("/health").json() == {"status": "ok", "version": "1.2"}


def test_an_api_without_a_key_is_not_made() -> None:
    with pytest.raises(ValueError, match="key"):
        TestClient(create_app(scripted_novels(), "")).get("/health")


def test_routes_and_methods_that_do_not_exist_answer_in_openais_shape(http: TestClient) -> None:
    assert fault(http.get("/v1/embeddings")) == (404, None, "not_found")
    assert fault(http.get("/v1/completions")) == (405, None, "method_not_allowed")
    assert fault(http.get("/docs"))[0] == 404


def test_with_one_servable_model_a_request_needs_no_model(http: TestClient) -> None:
    answer = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).json()
    assert (answer["model"], answer["created"]) == ("novels-6m", 1234)


def test_token_ids_come_on_request_with_the_logprobs_of_both_forms(http: TestClient) -> None:
    wishes = {"prompt": "a", "max_tokens": 2, "temperature": 0, "logprobs": 1, "return_token_ids": True}
    choice = http.post("/v1/completions", json=wishes).json()["choices"][0]
    assert choice["token_ids"] == [40, 40]
    assert [token["id"] for token in choice["logprobs"]["content"]] == [40, 40]
    assert len(choice["logprobs"]["tokens"]) == 2
    plain = http.post("/v1/completions", json={**wishes, "return_token_ids": None}).json()["choices"][0]
    assert "token_ids" not in plain
    assert "content" not in plain["logprobs"]


def test_a_stream_is_server_sent_events_that_end_with_done(http: TestClient) -> None:
    response = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 3, "temperature": 0, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = response.text.split("\n\n")
    assert all(event.startswith("data: {") for event in events[:-2])
    assert events[-2:] == ["data: [DONE]", ""]
    last = json.loads(events[-3].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["shoal"]["route"]["hops"][0]["tokens"] == 3
    assert "usage" not in last


def test_metrics_count_requests_tokens_and_latency(http: TestClient) -> None:
    http.post("/v1/completions", json={"prompt": "a b", "max_tokens": 5})
    http.get("/nowhere")
    text = http.get("/metrics").text
    assert 'shoal_http_requests_total{route="/v1/completions",status="200"}' in text
    assert 'shoal_http_requests_total{route="unknown",status="404"}' in text
    assert 'shoal_completion_tokens_total{model="novels-6m"}' in text
    assert 'shoal_first_token_seconds_count{model="novels-6m"}' in text
    assert "shoal_gateway_sessions 0.0" in text


def test_the_owner_sees_and_steers_the_node(http: TestClient, node: Node) -> None:
    assert http.get("/shoal/v1/status").json() == {"name": "ada", "public": False}
    assert http.get("/shoal/v1/peers").json() == {"peers": [{"id": "12D3A", "layers": "embed+0:4"}]}
    assert http.get("/shoal/v1/models").json()["models"][0]["name"] == "novels-6m"
    assert http.get("/shoal/v1/invites").json() == {"invites": [{"id": "i1"}]}
    made = http.post("/shoal/v1/invites", json={"ttl_s": 60, "name": "bob"})
    assert (made.status_code, made.json()["invite"], node.invited[-1]) == (201, "shoal:abc", (60.0, "bob"))
    assert http.post("/shoal/v1/invites").status_code == 201
    assert http.delete("/shoal/v1/invites/i1").json() == {"revoked": "i1"}
    assert fault(http.delete("/shoal/v1/invites/i9")) == (404, "invite", "not_found")
    assert http.post("/shoal/v1/peers/12D3A/revoke").json() == {"revoked": "12D3A"}
    assert fault(http.post("/shoal/v1/peers/nobody/revoke")) == (404, "peer", "not_found")
    assert fault(http.post("/shoal/v1/peers/owner/revoke")) == (403, None, "refused")
    assert http.post("/shoal/v1/shutdown").status_code == 202
    assert node.stopped


@pytest.mark.parametrize("ttl_s", [0, -1, 1e12, "soon"])
def test_an_invite_has_a_sensible_lifetime(http: TestClient, ttl_s: object) -> None:
    assert fault(http.post("/shoal/v1/invites", json={"ttl_s": ttl_s}))[:2] == (400, "ttl_s")
