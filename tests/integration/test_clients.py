"""Clients of OpenAI's API with this one: real HTTP, an engine with prepared answers, and OpenAI's own client."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import httpx2
import openai
import pytest
import schemathesis
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from deployments.engines.tokenizing import PromptEncoder
from deployments.http.auth import ApiKeys, _digest
from tests.helpers.http_api import CHAT, SECRET, api
from tests.helpers.paths import ROOT

MODEL = "org/m"
ENGINE = {"name": "e", "model_name": MODEL, "engine": {"context": 256}}
ORIGIN = "https://chat.example"


@pytest.fixture(scope="module")
def asgi() -> TestClient:
    """The application, whose engine can be reached from pages of one origin."""
    client, _ = api(engines=[ENGINE], cors_origins=[ORIGIN])
    return client


@pytest.fixture(scope="module")
def url(asgi: TestClient) -> Iterator[str]:
    """Its address."""
    server = uvicorn.Server(uvicorn.Config(cast(Any, asgi.app), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_an_answers_message_goes_back_as_it_is(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    for _ in range(2):
        answer = client.chat.completions.create(model=MODEL, messages=messages)
        messages.append(answer.choices[0].message.model_dump())
        messages.append({"role": "user", "content": "And then?"})
    assert "refusal" in messages[1]
    client.chat.completions.create(model=MODEL, messages=messages)


def test_the_chat_example_streams_an_answer(url: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / "chat_client.py"), f"{url}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "a b c"), done.stderr


def test_a_prompt_that_is_too_long_is_known_for_it(client: openai.OpenAI) -> None:
    for words in (300, 10_000):
        with pytest.raises(openai.BadRequestError) as refusal:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * words}])
        assert refusal.value.code == "context_length_exceeded"
        assert refusal.value.param == "messages"
        # Gateways and frameworks look for these words, the one in the message, the other anywhere.
        assert "This model's maximum context length is 256 tokens. However, " in refusal.value.message
        assert "context_length_exceeded" in str(refusal.value)
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model=MODEL, prompt="word " * 300)
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError, match="your prompt resulted in 256 tokens"):
        client.completions.create(model=MODEL, prompt=[504] * 256)
    client.completions.create(model=MODEL, prompt=[504] * 255, max_tokens=1)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_too_many_new_tokens_do_not_blame_the_prompt(client: openai.OpenAI, field: str) -> None:
    with pytest.raises(openai.BadRequestError, match=rf"reduce {field} to \d+") as refusal:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], extra_body={field: 256, "ignore_eos": True}
        )
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", field)
    assert "This model's maximum context length is 256 tokens. However, " in refusal.value.message
    room = int(str(refusal.value.message).partition(f"{field} to ")[2].partition(",")[0])
    client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], extra_body={field: room}
    )


def test_a_model_may_be_named_as_on_a_hub(client: openai.OpenAI, url: str) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    for path in ("org/m", "org%2Fm"):
        assert httpx2.get(f"{url}/v1/models/{path}").json()["id"] == MODEL
    missing = httpx2.get(f"{url}/v1/models/org/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_answers_to_requests_of_one_id_have_their_own(client: openai.OpenAI) -> None:
    headers = {"X-Request-Id": "same"}
    chats: list[Any] = [
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], extra_headers=headers
        )
        for _ in range(2)
    ]
    texts: list[Any] = [client.completions.create(model=MODEL, prompt="Hello", extra_headers=headers) for _ in range(2)]
    assert all(one.id.startswith("chatcmpl-") for one in chats)
    assert all(one.id.startswith("cmpl-") for one in texts)
    assert len({one.id.partition("-")[2] for one in [*chats, *texts]}) == 4


def usages(stream: Any) -> list[int | None]:
    return [None if chunk.usage is None else chunk.usage.completion_tokens for chunk in stream]


@pytest.mark.parametrize(
    ("options", "opening", "rest"),
    [
        ({"include_usage": True, "continuous_usage_stats": True}, [0], [2, 3, 3]),
        ({"include_usage": True, "include_obfuscation": False}, [None], [None, None, 3]),
        ({"continuous_usage_stats": True}, [None], [None, None]),
    ],
)
def test_usage_is_streamed_as_the_options_say(
    client: openai.OpenAI, options: Any, opening: list[int | None], rest: list[int | None]
) -> None:
    chat: Any = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], stream=True, stream_options=options
    )
    assert usages(chat) == opening + rest
    text: Any = client.completions.create(model=MODEL, prompt="Hello", stream=True, stream_options=options)
    assert usages(text) == rest


def test_what_can_be_read_has_a_head(url: str) -> None:
    for path in ("/health", "/v1/models", "/v1/models/org/m", "/metrics", "/docs", "/openapi.json"):
        head, whole = httpx2.head(f"{url}{path}"), httpx2.get(f"{url}{path}")
        assert head.status_code == whole.status_code == 200, path
        assert head.content == b""
        assert head.headers["content-length"] == whole.headers["content-length"]
    assert httpx2.head(f"{url}/nothing").status_code == 404
    assert httpx2.head(f"{url}/v1/completions").status_code == 405


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/chat/completions", "OPTIONS, POST"),
        ("/v1/models/org/m", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_say_what_a_path_takes(url: str, path: str, allowed: str) -> None:
    answer = httpx2.options(f"{url}{path}")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allowed, b"")
    assert httpx2.options(f"{url}/nothing").status_code == 404


def preflight(client: TestClient, origin: str) -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    return client.options("/v1/chat/completions", headers=headers)


def test_pages_of_the_origins_that_are_set_may_ask(asgi: TestClient) -> None:
    answer = preflight(asgi, ORIGIN)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in answer.headers["access-control-allow-headers"]
    for body in (CHAT | {"model": MODEL}, CHAT | {"model": "none"}, {}):
        reported = asgi.post("/v1/chat/completions", json=body, headers={"Origin": ORIGIN})
        assert reported.headers["access-control-allow-origin"] == ORIGIN
        assert "Retry-After" in reported.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in preflight(asgi, "https://other.example").headers


def test_a_page_reads_of_an_unexpected_error_too(asgi: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> list[int]:
        raise ZeroDivisionError

    monkeypatch.setattr(PromptEncoder, "encode_text", broken)
    answer = asgi.post("/tokenize", json={"model": MODEL, "prompt": "x"}, headers={"Origin": ORIGIN})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_no_page_may_ask_unless_that_is_set() -> None:
    client, _ = api()
    assert "access-control-allow-origin" not in preflight(client, ORIGIN).headers
    answer = client.post("/v1/chat/completions", json=CHAT, headers={"Origin": ORIGIN})
    assert "access-control-allow-origin" not in answer.headers


MEGABYTE = "private" + "x" * 100_000
MISTAKES: list[tuple[str, Any]] = [
    ("/v1/chat/completions", CHAT | {"stop": [MEGABYTE] * 17}),
    ("/v1/chat/completions", CHAT | {"stop": ["private"] * 17}),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"7" * 5000: 1}}),
    ("/v1/chat/completions", CHAT | {"logit_bias": {"private": 1}}),
    ("/v1/chat/completions", CHAT | {"model": "private"}),
    ("/v1/chat/completions", CHAT | {"model": MEGABYTE}),
    ("/v1/chat/completions", CHAT | {"model": "x" * 256}),
    ("/v1/chat/completions", CHAT | {"speculation": {"method": MEGABYTE}}),
    ("/v1/chat/completions", CHAT | {MEGABYTE: 1}),
    ("/v1/chat/completions", CHAT | {"tools": [MEGABYTE]}),
    ("/v1/chat/completions", CHAT | {"temperature": MEGABYTE}),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": MEGABYTE, "content": "x"}]}),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": {MEGABYTE: MEGABYTE}}]}),
    ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": MEGABYTE}]}),
    ("/v1/completions", {"model": "m", "prompt": [MEGABYTE, 7]}),
    ("/v1/completions", {"model": "m", "prompt": ["private"] * 1000}),
    ("/v1/completions", {"model": "m", "prompt": "x", "stop": [""], "user": MEGABYTE}),
    ("/v1/completions", {"model": "m", "prompt": [2**30] * 100_000}),
    ("/v1/completions", MEGABYTE),
    ("/v1/completions", [MEGABYTE]),
    ("/tokenize", {"model": "m", "prompt": MEGABYTE}),
    ("/tokenize", {"model": "m", "messages": [{"role": "user", "content": MEGABYTE}]}),
]


def test_mistakes_of_any_size_are_told_shortly_and_not_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[dict[str, Any]] = []
    client, answers = api(lines=lines)
    with caplog.at_level(logging.DEBUG):
        for path, body in MISTAKES:
            answer = client.post(path, json=body)
            assert answer.status_code in {400, 404}, answer.text[:200]
            error = answer.json()["error"]
            assert len(answer.content) < 1000, error
            assert "x" * 81 not in answer.text
            assert error["type"] in {"invalid_request_error", "not_found_error"}
            assert error["code"], error
    assert not answers.calls
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert len(lines) == len(MISTAKES)
    assert all(line["error"]["code"] for line in lines)
    assert not [line for line in [*ours, *map(json.dumps, lines)] if "private" in line or len(line) > 500]


def test_text_that_cannot_fit_is_never_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = api()
    tokenized: list[object] = []

    async def stored(_: PromptEncoder, work: Any) -> Any:
        tokenized.append(found := work())
        return found

    monkeypatch.setattr(PromptEncoder, "_run", stored)
    long = "word " * 100_000
    for path, body in (("/v1/completions", {"prompt": long}), ("/tokenize", {"prompt": long})):
        answer = client.post(path, json={"model": "m", **body})
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert answer.json()["error"]["param"] == "prompt"
    assert not tokenized
    assert client.post("/v1/completions", json={"model": "m", "prompt": ["a"] * 17}).status_code == 400
    assert not tokenized
    assert client.post("/tokenize", json={"model": "m", "prompt": "word " * 1000}).json()["count"] > 256


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        ({"prompt": ["a"] * 17}, "prompt", "17 prompts are more than 16"),
        ({"prompt": ["a"] * 3, "n": 6}, "n", "6 answers to each of 3 prompts are more than 16"),
        ({"prompt": "a", "n": 17}, "n", "17 answers are more than 16"),
    ],
)
def test_what_there_is_too_much_of_is_named(given: dict[str, Any], param: str, words: str) -> None:
    client, _ = api()
    error = client.post("/v1/completions", json={"model": "m"} | given).json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"model": "m",', "not valid JSON at character 14: expecting property name"),
        (b'{"model": "m"}}', "not valid JSON at character 14: extra data"),
        (b"", "field required; send a JSON object"),
    ],
)
def test_json_that_is_none_says_where(body: bytes, words: str) -> None:
    client, _ = api()
    answer = client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_body_that_is_announced_too_large_is_not_read() -> None:
    client, _ = api(limits={"body_bytes": 2000})
    headers = {"content-type": "application/json", "content-length": "2001"}
    assert client.post("/v1/completions", content=b"{}", headers=headers).status_code == 413


def test_the_api_describes_itself_without_other_hosts() -> None:
    client, _ = api(keys=ApiKeys({"alice": _digest(SECRET)}))
    page = client.get("/docs")
    assert page.status_code == 200
    addresses = [part.partition('"')[0] for key in ('src="', 'href="') for part in page.text.split(key)[1:]]
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/"), address
        assert client.get(address).status_code == 200
    assert "://" not in page.text
    assert '"validatorUrl": null' in page.text
    document = client.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert [scheme["scheme"] for scheme in schemes.values()] == ["bearer"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["description"], path
            assert bool(operation.get("security")) == (path not in {"/health", "/ready", "/ping"}), path
            schema = next(iter(operation["responses"]["200"]["content"].values()))["schema"]
            assert schema, path
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert chat["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatAnswer"}
    assert chat["400"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert all("description" in fields[name] for name in ("max_tokens", "temperature", "stop", "seed", "n", "stream"))
    assert json.dumps(document).count("http") < 5


def operations(app: Any) -> list[Any]:
    """The application's own document."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    return [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]


def test_answers_are_as_the_document_says(asgi: TestClient) -> None:
    seen: set[int] = set()
    for operation in operations(asgi.app):

        @settings(
            max_examples=25,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), known=st.booleans())
        def sent(case: Any, known: bool) -> None:
            if known and isinstance(case.body, dict):
                case.body["model"] = MODEL
            answer = case.call()
            seen.add(answer.status_code)
            case.validate_response(
                answer, checks=[response_schema_conformance, content_type_conformance, status_code_conformance]
            )
            assert answer.status_code < 500 or case.operation.path == "/ready"

        sent()
    assert seen >= {200, 400, 404}
