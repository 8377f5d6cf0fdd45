"""Fields of OpenAI's and vLLM's requests that ask for nothing are taken; those that ask for something are refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from openai.types import completion_create_params as openai_completion
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageParam
from openai.types.chat import ChatCompletionStreamOptionsParam as OpenAIStreamOptions
from openai.types.chat import completion_create_params as openai_chat
from pydantic import ValidationError

from deployments.protocol.body import Body
from deployments.protocol.compatibility import CHAT, COMPLETION, MESSAGE, UNSUPPORTED, ForeignFields
from deployments.protocol.errors import validation_error
from deployments.protocol.schema import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
    StreamOptions,
)
from deployments.protocol.tokenize_schema import TokenizeRequest

CHAT_BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
TEXT_BODY: dict[str, Any] = {"model": "m", "prompt": "Hello"}

VLLM = """
    use_beam_search top_k min_p repetition_penalty length_penalty stop_token_ids include_stop_str_in_output ignore_eos
    min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
    allowed_token_ids prompt_logprobs bad_words add_special_tokens response_format structured_outputs priority
    request_id return_tokens_as_token_ids return_token_ids return_token_offsets cache_salt kv_transfer_params
    ec_transfer_params vllm_xargs repetition_detection thinking_token_budget
""".split()
VLLM_CHAT = """
    echo add_generation_prompt continue_final_message documents chat_template chat_template_kwargs media_io_kwargs
    mm_processor_kwargs return_prompt_text return_assistant_tokens_mask include_reasoning best_of
""".split()
VLLM_DEFAULTS: dict[str, Any] = {
    "use_beam_search": False,
    "length_penalty": 1.0,
    "stop_token_ids": [],
    "include_stop_str_in_output": False,
    "ignore_eos": False,
    "min_tokens": 0,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "bad_words": [],
    "priority": 0,
    "return_token_offsets": False,
    "echo": False,
    "n": 1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "stop": [],
    "stream": False,
    "best_of": 1,
}
VLLM_CHAT_DEFAULTS: dict[str, Any] = {
    "logprobs": False,
    "top_logprobs": 0,
    "tool_choice": "none",
    "include_reasoning": True,
    "parallel_tool_calls": True,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "add_special_tokens": False,
    "return_assistant_tokens_mask": False,
}


def names(*params: Any) -> set[str]:
    return {name for each in params for name in each.__annotations__}


def mistake(body: type[Body], given: dict[str, Any]) -> tuple[str | None, str | None, str]:
    """Param, code and message of what a client is sent for a body."""
    with pytest.raises(ValidationError) as refusal:
        body.model_validate(given)
    error = validation_error([{**one, "loc": ("body", *one["loc"])} for one in refusal.value.errors()])
    return error.param, error.code, error.message


@pytest.mark.parametrize(
    ("body", "known"),
    [
        (ChatRequest, names(openai_chat.CompletionCreateParamsBase) | set(VLLM) | set(VLLM_CHAT)),
        (CompletionRequest, names(openai_completion.CompletionCreateParamsBase) | set(VLLM) | {"prompt_embeds"}),
        (Message, names(*get_args(ChatCompletionMessageParam)) | set(ChatCompletionMessage.model_fields)),
        (StreamOptions, names(OpenAIStreamOptions)),
    ],
)
def test_every_field_of_openai_and_vllm_is_known(body: type[Body], known: set[str]) -> None:
    assert known - set(body.model_fields) - set(body.foreign.no_effect) - body.foreign.ignored == set()


@pytest.mark.parametrize(("body", "good"), [(ChatRequest, CHAT_BODY), (CompletionRequest, TEXT_BODY)])
def test_null_requests_nothing(body: type[GenerationRequest], good: dict[str, Any]) -> None:
    optional = {name for name, field in body.model_fields.items() if not field.is_required()}
    nulls = dict.fromkeys(optional | set(body.foreign.no_effect) | body.foreign.ignored)
    assert body.model_validate(good | nulls) == body.model_validate(good)


@pytest.mark.parametrize(
    ("body", "good", "defaults"),
    [(ChatRequest, CHAT_BODY, VLLM_DEFAULTS | VLLM_CHAT_DEFAULTS), (CompletionRequest, TEXT_BODY, VLLM_DEFAULTS)],
)
def test_defaults_of_vllm_request_nothing(
    body: type[GenerationRequest], good: dict[str, Any], defaults: dict[str, Any]
) -> None:
    assert body.model_validate(good | defaults).sampling_params(9, 9) == body.model_validate(good).sampling_params(9, 9)


@pytest.mark.parametrize(
    "given",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto", "tools": []},
        {"functions": []},
        {"function_call": "none"},
        {"function_call": {}, "audio": {}},
        {"modalities": ["text"]},
        {"verbosity": "medium"},
        {"reasoning_effort": "none"},
        {"echo": False},
        {"suffix": ""},
        {"length_penalty": 1},
        {"chat_template_kwargs": {}},
        {"response_format": {"type": "text"}},
        {"stream_options": {"include_usage": None, "include_obfuscation": False, "continuous_usage_stats": True}},
        {"metadata": {"a": "b"}, "store": True, "prompt_cache_options": {"mode": "explicit"}},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": None, "refusal": None}]},
        {"messages": [{"role": "assistant", "content": "Hi", "tool_calls": [], "annotations": [], "audio": None}]},
        {"messages": [{"role": "assistant", "content": "Hi", "function_call": {}, "audio": {}}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {}}]}]},
    ],
)
def test_values_that_request_nothing_are_taken(given: dict[str, Any]) -> None:
    assert ChatRequest.model_validate(CHAT_BODY | given)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"function_call": "auto", "functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"audio": {"voice": "ash", "format": "mp3"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"suffix": "end"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"echo": 0}, "echo"),
        ({"best_of": True}, "best_of"),
        ({"best_of": 2}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"length_penalty": 1.1}, "length_penalty"),
        ({"truncation_side": "right"}, "truncation_side"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern"),
        ({"messages": [{"role": "assistant", "content": None, "refusal": "No."}]}, "messages.0.refusal"),
    ],
)
def test_values_that_request_something_are_refused_by_name(given: dict[str, Any], param: str) -> None:
    found, code, message = mistake(ChatRequest, CHAT_BODY | given)
    assert (found, code) == (param, UNSUPPORTED)
    assert message.startswith(f"{param}: ")
    assert "leave it out" in message


@pytest.mark.parametrize("foreign", [CHAT, COMPLETION, MESSAGE])
def test_whatever_a_refusal_advises_is_taken(foreign: ForeignFields) -> None:
    for field, values in foreign.no_effect.items():
        for value in (None, *values):
            assert foreign.strip_from({field: value, "other": 1}) == {"other": 1}


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_are_as_each_endpoint_has_them(special: bool) -> None:
    given = {"add_special_tokens": special}
    body, good = (ChatRequest, CHAT_BODY) if special else (CompletionRequest, TEXT_BODY)
    other, other_good = (CompletionRequest, TEXT_BODY) if special else (ChatRequest, CHAT_BODY)
    assert mistake(body, good | given)[0] == "add_special_tokens"
    assert other.model_validate(other_good | given)


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
            "messages.0.content.0.type",
            "'image_url' is not accepted: the model reads text alone",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "only an assistant's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "give the call's id"),
        (
            {"messages": [{"role": "tool", "content": None, "tool_call_id": "7"}]},
            "messages.0.content",
            "an assistant's",
        ),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content", "valid string"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias", "1024"),
        ({"stop": ["x" * 1025]}, "stop.0", "1024 characters"),
        ({"x" * 10**6: 1}, "x" * 79 + "…", "unknown here; leave it out"),
        ({"a[0]": 1}, "a[0]", "unknown here; leave it out"),
        ({"[0]": 1}, "[0]", "unknown here; leave it out"),
        ({"messages": [CHAT_BODY["messages"][0] | {"a[0]": 1}]}, "messages.0.a[0]", "unknown here; leave it out"),
    ],
)
def test_a_mistake_is_named_where_it_is(given: dict[str, Any], param: str, words: str) -> None:
    found, _, message = mistake(ChatRequest, CHAT_BODY | given)
    assert found == param
    assert message.startswith(f"{param}: ")
    assert words in message
    assert len(message) < 300


@pytest.mark.parametrize("items", [[None] * 10**6, ["x"] * 10**6, [[None] * 1000] * 1000, [7, *["x"] * 10**6]])
def test_a_list_of_a_million_mistakes_has_one_error(items: list[Any]) -> None:
    for field in ("prompt", "stop", "stop_token_ids"):
        with pytest.raises(ValidationError) as refusal:
            CompletionRequest.model_validate(TEXT_BODY | {field: items})
        assert refusal.value.error_count() == 1


def test_many_unknown_fields_have_one_error() -> None:
    many = {f"unknown {number}": number for number in range(10**5)}
    message = CHAT_BODY["messages"][0]
    part = {"type": "text", "text": "Hello"}
    for given in (
        many,
        {"messages": [message | many] * 3},
        {"messages": [message | {"content": [part | many] * 3}]},
        {"stream_options": many},
        {"speculation": many},
        {"response_format": {"type": "text"} | many},
    ):
        with pytest.raises(ValidationError) as refusal:
            ChatRequest.model_validate(CHAT_BODY | given)
        assert refusal.value.error_count() == 1
        assert refusal.value.errors()[0]["loc"][-1] == "unknown 0"


def test_tokenizing_takes_what_requests_nothing() -> None:
    nulls = dict.fromkeys(TokenizeRequest.foreign.no_effect)
    assert TokenizeRequest.model_validate(TEXT_BODY | nulls | {"add_generation_prompt": True})


@pytest.mark.parametrize(("good", "special"), [(TEXT_BODY, True), (CHAT_BODY, False)])
def test_tokenizing_takes_the_special_tokens_that_it_writes(good: dict[str, Any], special: bool) -> None:
    assert TokenizeRequest.model_validate(good | {"add_special_tokens": special})
    found, code, _ = mistake(TokenizeRequest, good | {"add_special_tokens": not special})
    assert (found, code) == ("add_special_tokens", UNSUPPORTED)
