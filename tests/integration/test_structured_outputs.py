"""Forms of an answer on the bundled model: over HTTP, and, slowly, over every keyword of schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from deployments.engines.client import EngineClient
from deployments.engines.replica import EngineReplica
from deployments.http.access_log import LogSink
from deployments.http.auth import ApiKeys
from deployments.http.routes import make_api
from deployments.settings import AppArgs, EngineArgs
from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import Completion
from entmtp.decoding.request import Request
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.models.loading.load import encode_chat, load_tokenizer
from entmtp.policies.static import StaticPolicy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.structured import Structured
from entmtp.trees.topology import Topology
from tests.helpers.bundled_backbone import bundled_backbone
from tests.helpers.in_process_replica import InProcessHandle

pytestmark = pytest.mark.usefixtures("loads_once")

ARGS = EngineArgs.parse(name="e", model_name="m", method="autoregressive", engine={"slots": 4, "context": 512})
QUESTION = "Describe a person named Alice."
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 100, "seed": 1}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}
KEYWORDS: list[dict[str, Any]] = [
    {"type": "string", "minLength": 2, "maxLength": 8},
    {"type": "string", "pattern": "^[A-Z][a-z]{2,6}$"},
    {"type": "string", "pattern": "[0-9]{3}", "maxLength": 12},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "integer", "minimum": -5, "maximum": 1200},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 17},
    {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 5},
    {"type": ["boolean", "null"]},
    {"const": {"fixed": ["text", 1, None]}},
    {"enum": ["one", 2, [3], {"four": 4}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"const": "a"}, {"type": "null"}], "items": False, "minItems": 2},
    {"type": "array", "items": {"type": "array", "items": {"enum": [0, 1]}, "maxItems": 2}, "maxItems": 2},
    {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False},
    {"patternProperties": {"^[x-z]$": {"enum": [1, 2]}}, "additionalProperties": False} | {"type": "object"},
    {
        "properties": {"x": {"const": 1}},
        "required": ["z", "x"],
        "additionalProperties": {"const": 3},
        "maxProperties": 2,
    }
    | {"type": "object"},
    {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 5}]},
    {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "boolean"}]},
    {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
    {"allOf": [{"type": "integer", "minimum": 10}, {"maximum": 20}]},
    {"$ref": "#/$defs/pair"},
    {"type": "array", "items": {"$ref": "#/$defs/pair"}, "maxItems": 2},
    {"title": "described", "description": "a truth", "default": True, "type": "boolean"},
]
PAIR = {
    "type": "object",
    "properties": {"left": {"enum": ["l", "L"]}, "right": {"type": "boolean"}},
    "required": ["left", "right"],
    "additionalProperties": False,
}
SCHEMAS = [
    {
        "$defs": {"pair": PAIR},
        "type": "object",
        "properties": {"first": first, "second": second},
        "required": ["first", "second"],
        "additionalProperties": False,
    }
    for first, second in combinations(KEYWORDS, 2)
]
"""Each keyword with each other one: 300 schemas."""

TREE = Topology.of([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 0, 0)])


@pytest.fixture(scope="module")
def service(loads_once: None) -> Iterator[TestClient]:
    replica = EngineReplica(ARGS)
    client = EngineClient(AppArgs(engines=[ARGS]), {"e": InProcessHandle(replica)}, None)
    log = LogSink(lambda line: None, b"secret")

    async def ready() -> dict[str, bool]:
        return {"e": True}

    async def metrics() -> str:
        return ""

    with TestClient(make_api(client, ApiKeys({}), ready, metrics, log)) as service:
        yield service
    replica._engine.close()


@pytest.fixture(scope="module")
def engine() -> Engine:
    backbone = bundled_backbone()
    heads = load_heads(str(bundled_heads("hydra")), backbone)
    tokenizer = load_tokenizer("bundled").backend_tokenizer
    return Engine(backbone, heads, StaticPolicy(TREE, 8), EngineSettings(slots=4, context=512), tokenizer)


def answered(engine: Engine, *params: SamplingParams, max_nodes: int | None = None) -> list[Completion]:
    prompt = encode_chat(load_tokenizer("bundled"), QUESTION)
    done = [
        engine.submit(Request(f"{at}", prompt, one, max_nodes=max_nodes, prompt_index=0))
        for at, one in enumerate(params)
    ]
    while not engine.idle:
        engine.step()
    return done


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_its_form(service: TestClient, stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = service.post("/v1/chat/completions", json=CHAT | {"response_format": form, "stream": stream})
    assert answer.status_code == 200, answer.text
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        choices = [event["choices"][0] for event in events]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        reason = choices[-1]["finish_reason"]
    else:
        (choice,) = answer.json()["choices"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert reason == "stop"
    jsonschema.validate(json.loads(text), PERSON)


def test_every_answer_to_several_prompts_has_its_form(service: TestClient) -> None:
    body = {"model": "m", "prompt": ["Is it?", "Is it not?"], "n": 3, "guided_choice": [" yes", " no"], "max_tokens": 4}
    choices = service.post("/v1/completions", json=body).json()["choices"]
    assert len(choices) == 6
    assert {choice["text"] for choice in choices} <= {" yes", " no"}


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"structured_outputs": {"grammar": "begin: A"}}, "structured_outputs.grammar"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "text"}}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_json": {"$ref": "#"}}, "guided_json"),
        ({"guided_regex": "a" * 900_000}, "guided_regex"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_can_not_be_used_is_refused_by_name(
    service: TestClient, form: dict[str, Any], param: str, stream: bool
) -> None:
    answer = service.post("/v1/chat/completions", json=CHAT | form | {"stream": stream})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert error["message"].startswith(f"{param}: ")


def test_json_by_a_schema_takes_fewer_steps_than_free_text_by_the_same_heads(engine: Engine) -> None:
    def tau(structured: Structured | None) -> float:
        params = [
            SamplingParams(temperature=temperature, seed=seed, max_tokens=80, structured=structured)
            for temperature, seed in ((0.0, 0), (1.0, 0), (1.0, 1), (1.0, 2))
        ]
        done = answered(engine, *params)
        return sum(len(one.tokens) for one in done) / sum(len(one.steps) for one in done)

    assert tau(Structured(json=PERSON)) >= 1.4 * tau(None)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_every_keyword_holds_over_trees(engine: Engine, number: int) -> None:
    structured = Structured(json=SCHEMAS[number])
    params = [SamplingParams(temperature=0.0, max_tokens=300, structured=structured)]
    params += [SamplingParams(seed=seed, max_tokens=300, structured=structured) for seed in range(3)]
    done, plain = answered(engine, *params), answered(engine, *params, max_nodes=0)
    for one, expected in zip(done, plain, strict=True):
        assert one.finish_reason == "stop"
        jsonschema.validate(json.loads(one.text), SCHEMAS[number], format_checker=jsonschema.FormatChecker())
        assert one.tokens == expected.tokens
