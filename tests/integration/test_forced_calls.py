"""Forced calls of the bundled model over HTTP: the answer is a call by the schema, whatever it would write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import openai
import pytest

from deployments.engines.client import EngineClient
from deployments.engines.replica import EngineReplica
from deployments.http.access_log import LogSink
from deployments.http.auth import ApiKeys, _digest
from deployments.http.routes import make_api
from deployments.protocol.tool_formats import TOOL_FORMATS
from deployments.settings import AppArgs
from tests.helpers.http_api import SECRET
from tests.helpers.in_process_replica import InProcessHandle
from tests.helpers.scripted_service import _metrics, _ready, served

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {"name": "weather", "description": "The weather in a city.", "parameters": SCHEMA}
TIME: dict[str, Any] = {"name": "time", "parameters": {"type": "object", "additionalProperties": False}}
TOOLS: Any = [{"type": "function", "function": one} for one in (WEATHER, TIME)]
QUESTION: Any = [{"role": "user", "content": "Tell me a story about a fox."}]


@pytest.fixture(scope="module", params=sorted(TOOL_FORMATS))
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a service whose model calls in one of the formats."""
    engine = {"name": "e", "model_name": "m", "model": "bundled", "tool_format": request.param}
    args = AppArgs.parse(engines=[engine | {"engine": {"context": 1024, "slots": 2}}])
    replica = EngineReplica(args.engines[0])
    client = EngineClient(args, {"e": InProcessHandle(replica)}, None)
    app = make_api(client, ApiKeys({"alice": _digest(SECRET)}), _ready, _metrics, LogSink(lambda line: None, b"x"))
    with served(app) as found:
        yield found
    replica._engine.close()


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=SECRET, max_retries=0)


def check(name: str, arguments: str) -> None:
    schema = next(one["parameters"] for one in (WEATHER, TIME) if one["name"] == name)
    jsonschema.validate(json.loads(arguments), schema)


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    given = {"tools": TOOLS, "max_tokens": 200, "parallel_tool_calls": False, "seed": 1} | fields
    return client.chat.completions.create(model="m", messages=QUESTION, **given)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_required_call_is_made(client: openai.OpenAI, temperature: float) -> None:
    (choice,) = ask(client, tool_choice="required", temperature=temperature).choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    check(call.function.name, call.function.arguments)


@pytest.mark.parametrize("named", [WEATHER, TIME])
def test_a_named_call_is_made_and_streamed(client: openai.OpenAI, named: dict[str, Any]) -> None:
    choice: Any = {"type": "function", "function": {"name": named["name"]}}
    deltas = [one.choices[0].delta for one in ask(client, tool_choice=choice, stream=True) if one.choices]
    (first, *more) = [delta.tool_calls[0].function for delta in deltas if delta.tool_calls]
    assert first.name == named["name"]
    check(named["name"], "".join(one.arguments or "" for one in (first, *more)))
    assert not any(delta.content for delta in deltas)


def test_responses_and_messages_force_calls_too(client: openai.OpenAI, url: str) -> None:
    tools: Any = [{"type": "function", **WEATHER}]
    response = client.responses.create(
        model="m", input="A story, please.", tools=tools, tool_choice="required", max_output_tokens=200
    )
    calls: list[Any] = [one for one in response.output if one.type == "function_call"]
    for one in calls:
        check(one.name, one.arguments)
    anthropics = anthropic.Anthropic(base_url=url, api_key=SECRET, max_retries=0)
    tool: Any = {"name": "weather", "input_schema": SCHEMA}
    choice: Any = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    message = anthropics.messages.create(model="m", max_tokens=200, messages=QUESTION, tools=[tool], tool_choice=choice)
    assert calls
    assert message.stop_reason == "tool_use"
    for block in message.content:
        assert block.type == "tool_use"
        jsonschema.validate(block.input, SCHEMA)


def test_the_text_of_a_response_and_a_message_has_the_form_that_was_asked_for(client: openai.OpenAI, url: str) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "weather", "schema": SCHEMA}}
    response = client.responses.create(model="m", input="Paris?", text=text, max_output_tokens=200)
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    jsonschema.validate(json.loads(response.output_text), SCHEMA)
    anthropics = anthropic.Anthropic(base_url=url, api_key=SECRET, max_retries=0)
    config: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    message = anthropics.messages.create(model="m", max_tokens=200, messages=QUESTION, output_config=config)
    (block,) = message.content
    assert block.type == "text"
    jsonschema.validate(json.loads(block.text), SCHEMA)
