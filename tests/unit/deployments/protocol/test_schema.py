"""Requests: what is taken over, what is refused, and how the refusal says so."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.protocol.compatibility import IGNORED
from deployments.protocol.errors import add_error_handlers
from deployments.protocol.schema import ChatRequest, CompletionRequest
from entmtp.settings import SamplingParams
from tests.helpers.examples import examples

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
TEXT = {"model": "m", "prompt": "Hello"}


@pytest.fixture(scope="module")
def client() -> TestClient:
    """The two bodies behind real HTTP, with the service's own error handlers."""
    api = FastAPI()

    @api.post("/chat")
    async def chat(body: ChatRequest) -> dict[str, Any]:
        return body.sampling_params(100, None).model_dump()

    @api.post("/text")
    async def text(body: CompletionRequest) -> dict[str, Any]:
        return body.sampling_params(100, 16).model_dump() | {"prompts": body.prompts()}

    add_error_handlers(api)
    return TestClient(api, raise_server_exceptions=False)


def refused(client: TestClient, path: str, body: dict[str, Any], param: str) -> str:
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert param in error["message"]
    return str(error["message"])


def test_what_is_absent_or_null_is_the_default(client: TestClient) -> None:
    expected = SamplingParams(max_tokens=100).model_dump()
    assert client.post("/chat", json=CHAT).json() == expected
    assert client.post("/chat", json=CHAT | {"temperature": None, "stop": None, "seed": None}).json() == expected
    assert client.post("/text", json=TEXT).json() == expected | {"max_tokens": 16, "prompts": ["Hello"]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"stop": "end"}, {"stop": ["end"]}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": -2}, {"seed": 2**64 - 2}),
        ({"top_p": 0, "temperature": 1.5}, {"top_p": 1.0, "temperature": 0.0}),
        ({"top_logprobs": 0}, {"logprobs": None}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"logit_bias": {"7": -100}}, {"logit_bias": {"7": -100.0}}),
        ({"max_completion_tokens": 7, "max_tokens": 9}, {"max_tokens": 7}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"temperature": 0, "seed": 3, "min_p": 0.1, "repetition_penalty": 1.5}, {"temperature": 0.0, "seed": 3}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, {}),
        (dict.fromkeys(IGNORED, "anything"), {}),
    ],
)
def test_names_of_openai_and_vllm(client: TestClient, given: dict[str, Any], expected: dict[str, Any]) -> None:
    answer = client.post("/chat", json=CHAT | given)
    assert answer.status_code == 200, answer.text
    assert expected.items() <= answer.json().items()


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"seven": 1}}, "logit_bias"),
        ({"logit_bias": {"7": 1000}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "bogus", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"speculation": {"max_nodes": -1}}, "speculation.max_nodes"),
        ({"speculation": {"nodes": 1}}, "speculation.nodes"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"acceptance": "lossy"}, "acceptance"),
    ],
)
def test_the_field_that_is_wrong_is_named(client: TestClient, given: dict[str, Any], param: str) -> None:
    answer = client.post("/chat", json=CHAT | given)
    assert answer.status_code == 400, answer.text
    found = answer.json()["error"]["param"]
    assert found is not None
    assert found.startswith(param)


def test_a_body_that_is_no_object_says_what_to_send(client: TestClient) -> None:
    for body in (b"", b"[]", b"{", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000):
        answer = client.post("/chat", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, (body[:10], answer.text)
        assert "JSON object" in answer.json()["error"]["message"]
    assert client.post("/chat", content=b"{}", headers={"content-type": "text/plain"}).status_code == 400


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client: TestClient, number: str) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":' + number.encode() + b"}"
    answer = client.post("/chat", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_half_a_surrogate_pair_is_refused(client: TestClient) -> None:
    for body in (
        rb'{"model":"m","messages":[{"role":"user","content":"\ud800"}]}',
        rb'{"model":"m","\ud800":1,"messages":[{"role":"user","content":"x"}]}',
        rb'{"model":"\udfff","messages":[{"role":"user","content":"x"}]}',
    ):
        answer = client.post("/chat", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_are_texts_or_token_ids(client: TestClient, prompt: Any, expected: Any) -> None:
    assert client.post("/text", json=TEXT | {"prompt": prompt}).json()["prompts"] == expected


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        ({}, "prompt"),
        (7, "prompt"),
        ([None], "prompt.0"),
        ([1, "a"], "prompt.1"),
        (["a", 1], "prompt.1"),
        ([[1], "a"], "prompt.1"),
        ([[1.5]], "prompt.0.0"),
        ([-1], "prompt.0"),
        ([2**31], "prompt.0"),
        ([[10**30]], "prompt.0.0"),
    ],
)
def test_other_prompts_are_refused(client: TestClient, prompt: Any, param: str) -> None:
    refused(client, "/text", TEXT | {"prompt": prompt}, param)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=examples(per_hundred=300))
@given(st.dictionaries(st.sampled_from(sorted(ChatRequest.model_fields)) | st.text(max_size=8), VALUES, max_size=4))
def test_nothing_but_400_comes_of_nonsense(client: TestClient, given: dict[str, Any]) -> None:
    assert client.post("/chat", json=CHAT | given).status_code in {200, 400}
