"""Small endpoints and fields of OpenAI and vLLM, over an engine with prepared answers."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.engines.vllm_metrics import unfinished_requests
from deployments.http.openapi import UNSERVED
from entmtp import __version__
from entmtp.decoding.outputs import RequestOutput, TokenLogprobs
from tests.helpers.http_api import CHAT, STATS, Answers, api, events

TEXT = {"model": "m", "prompt": "a", "max_tokens": 8}


def test_token_ids_become_text_again() -> None:
    client, _ = api()
    text = "Café <|im_end|> naïve"
    tokens = client.post("/tokenize", json={"model": "m", "prompt": text}).json()["tokens"]
    assert client.post("/detokenize", json={"model": "m", "tokens": tokens}).json() == {"prompt": text}
    answer = client.post("/detokenize", json={"model": "m", "tokens": [1, 49_152]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tokens"
    assert "49152 is not one of the model's 49152 tokens" in answer.json()["error"]["message"]


def test_the_service_tells_its_release_and_its_load() -> None:
    client, _ = api()
    assert client.get("/version").json() == {"version": __version__}
    assert client.get("/load").json() == {"server_load": 0}


def test_the_load_is_what_runs_and_waits() -> None:
    lines = ['num_requests_running{engine="e"} 3.0', 'num_requests_running{engine="f"} 1.0']
    lines += ['num_requests_waiting{engine="e"} 5.0', 'outstanding_tokens{engine="e"} 900.0']
    assert unfinished_requests("\n".join(f"ray_entmtp_{line}" for line in lines)) == 9


@pytest.mark.parametrize("path", list(UNSERVED))
def test_a_path_of_another_kind_of_service_is_refused_in_words(path: str) -> None:
    client, _ = api()
    answer = client.post(path, json={"model": "m", "input": "a"})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "unsupported_endpoint"
    assert error["message"] == f"POST {path}: {UNSERVED[path]}"


@pytest.mark.parametrize(
    ("path", "given", "words"),
    [
        ("completions", {"suffix": "the end"}, "text is written after a prompt, and not into a gap"),
        ("completions", {"use_beam_search": True}, "it draws tokens, and has no beams"),
        ("completions", {"length_penalty": 0.5}, "it is for beam search"),
        ("completions", {"prompt_embeds": "AAAA"}, "and no embeddings"),
        ("chat/completions", {"audio": {"voice": "alloy"}}, "write text alone, and no audio"),
        ("chat/completions", {"modalities": ["text", "audio"]}, "write text alone"),
        ("chat/completions", {"web_search_options": {}}, "reads nothing but the request"),
    ],
)
def test_a_field_that_is_not_offered_is_refused_with_the_reason(path: str, given: dict[str, Any], words: str) -> None:
    client, answers = api()
    error = client.post(f"/v1/{path}", json=(CHAT if "chat" in path else TEXT) | given).json()["error"]
    assert (error["param"], error["code"]) == (next(iter(given)), "unsupported_parameter")
    assert words in error["message"]
    assert not answers.calls


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, "text alone, and no images"),
        ({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}, "text alone, and no audio"),
        ({"type": "file", "file": {"file_id": "x"}}, "text alone, and no files"),
        ({"type": "hologram"}, "text alone; send parts of type 'text'"),
        ({"type": ["image_url"]}, "text alone; send parts of type 'text'"),
    ],
)
def test_a_part_that_is_no_text_is_refused_in_words(part: dict[str, Any], words: str) -> None:
    client, _ = api()
    answer = client.post("/v1/chat/completions", json=CHAT | {"messages": [{"role": "user", "content": [part]}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages.0.content.0.type"
    assert words in answer.json()["error"]["message"]


def test_a_fingerprint_names_what_the_text_of_a_seed_depends_on() -> None:
    def fingerprints(**engine: Any) -> set[str]:
        client, _ = api(engines=[{"name": "e", "model_name": "m", "engine": {"context": 256}} | engine])
        chunks = events(client.post("/v1/chat/completions", json=CHAT | {"stream": True}).text)[:-1]
        whole = [client.post("/v1/chat/completions", json=CHAT).json()]
        whole += [client.post("/v1/completions", json=TEXT).json()]
        return {each["system_fingerprint"] for each in [*chunks, *whole]}

    (first,) = fingerprints()
    assert first.startswith("fp_")
    assert fingerprints() == fingerprints(engine={"context": 128}) == {first}
    assert fingerprints(method="autoregressive") != {first}
    assert fingerprints(dtype="bfloat16") != {first}


def logprobs(*values: float) -> list[TokenLogprobs]:
    return [TokenLogprobs(value, []) for value in values]


def test_the_best_of_several_answers_are_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    likelihoods = {"a": [-3.0, -1.0], "b": [-0.5, -0.7], "c": [-0.1, -9.0], "d": [-1.0, -0.5]}
    client, answers = api()

    def answer(self: Any) -> Any:
        letter = "abcd"[self.calls[-1].answer_index]
        scores = logprobs(*likelihoods[letter])
        return [RequestOutput("r", [504, 253], letter, scores, finish_reason="stop", stats=STATS)]

    monkeypatch.setattr(Answers, "items", property(answer), raising=False)
    body = client.post("/v1/completions", json=TEXT | {"best_of": 4, "n": 2}).json()
    with_logprobs = client.post("/v1/completions", json=TEXT | {"best_of": 4, "n": 2, "logprobs": 0}).json()
    assert [(one["index"], one["text"], one["logprobs"]) for one in body["choices"]] == [(0, "b", None), (1, "d", None)]
    assert body["usage"]["completion_tokens"] == 8  # all that were written
    assert [one["logprobs"]["token_logprobs"] for one in with_logprobs["choices"]] == [[-0.5, -0.7], [-1.0, -0.5]]
    assert [call.params.logprobs for call in answers.calls] == [0] * 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"best_of": 2, "n": 3}, "best_of must be at least n"),
        ({"best_of": 3, "stream": True}, "a stream can't return the best answers"),
        ({"best_of": 17}, "best_of: 17 answers are more than 16"),
        ({"best_of": 0}, "best_of"),
    ],
)
def test_best_of_is_refused_where_it_cannot_be_whole(given: dict[str, Any], words: str) -> None:
    client, answers = api()
    answer = client.post("/v1/completions", json=TEXT | given)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert not answers.calls


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"priority": -1}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"request_id": "a b"}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 0}, "prompt"),
        ({"truncation_side": "right"}, "truncation_side"),
        ({"bad_words": [""]}, "bad_words.0"),
        ({"bad_words": "no"}, "bad_words"),
        ({"bad_words": ["x"] * 257}, "bad_words"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
        ({"return_token_ids": 1}, "return_token_ids"),
    ],
)
def test_a_wrong_field_is_refused_by_name(given: dict[str, Any], param: str) -> None:
    client, answers = api()
    answer = client.post("/v1/completions", json=TEXT | given)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not answers.calls


def test_the_fields_reach_the_engine() -> None:
    client, answers = api()
    given = {"skip_special_tokens": False, "include_stop_str_in_output": True, "bad_words": ["no"], "stop": ["x"]}
    assert client.post("/v1/chat/completions", json=CHAT | given | {"priority": 7}).status_code == 200
    (call,) = answers.calls
    assert call.priority == 7
    assert {name: getattr(call.params, name) for name in given} == given


def test_nothing_is_drafted_for_a_single_token() -> None:
    client, answers = api()
    for tokens in (1, 2):
        client.post("/v1/completions", json=TEXT | {"max_tokens": tokens, "speculation": {"max_nodes": 3}})
    assert [call.max_nodes for call in answers.calls] == [0, 3]


def test_an_answer_has_the_id_that_its_client_gave() -> None:
    client, _ = api()
    chat = client.post("/v1/chat/completions", json=CHAT | {"request_id": "mine-1"}).json()
    text = client.post("/v1/completions", json=TEXT | {"request_id": "mine-2"}).json()
    assert (chat["id"], text["id"]) == ("chatcmpl-mine-1", "cmpl-mine-2")


def test_only_the_end_of_a_long_prompt_is_read() -> None:
    client, answers = api()
    words = "one two three four five " * 200  # longer than the context
    body = TEXT | {"prompt": words, "truncate_prompt_tokens": 7, "echo": True}
    echoed = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    client.post("/v1/completions", json=TEXT | {"prompt": words, "truncate_prompt_tokens": -1})
    client.post("/v1/completions", json=TEXT | {"prompt": [[5, 6, 7], [8]], "truncate_prompt_tokens": 2})
    chat = {"messages": [{"role": "user", "content": words}], "truncate_prompt_tokens": 9}
    client.post("/v1/chat/completions", json=CHAT | chat)
    lengths = [len(call.prompt) for call in answers.calls]
    assert lengths == [7, 256 - 8, 2, 1, 9]
    assert list(answers.calls[2].prompt) == [6, 7]
    assert words.endswith(echoed.removesuffix(" a b c"))
    assert client.post("/v1/completions", json=TEXT | {"prompt": words}).status_code == 400


def test_token_ids_come_with_the_text() -> None:
    client, answers = api()
    wanted = {"return_token_ids": True}
    chat = client.post("/v1/chat/completions", json=CHAT | wanted).json()
    text = client.post("/v1/completions", json=TEXT | wanted).json()["choices"][0]
    first, second = (list(call.prompt) for call in answers.calls)
    assert (chat["prompt_token_ids"], chat["choices"][0]["token_ids"]) == (first, [504, 253, 28])
    assert (text["prompt_token_ids"], text["token_ids"]) == (second, [504, 253, 28])
    for path, body in (("chat/completions", CHAT), ("completions", TEXT)):
        chunks = events(client.post(f"/v1/{path}", json=body | wanted | {"stream": True}).text)[:-1]
        tokens = [token for chunk in chunks for token in chunk["choices"][0].get("token_ids", [])]
        assert tokens == [504, 253, 28]
        holders = [each for chunk in chunks for each in (chunk, chunk["choices"][0]) if "prompt_token_ids" in each]
        assert [each["prompt_token_ids"] for each in holders] == [first if path != "completions" else second]
    assert "token_ids" not in client.post("/v1/completions", json=TEXT).json()["choices"][0]


def test_a_last_message_is_continued_or_left_without_an_answers_header() -> None:
    client, answers = api()
    begun = [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "The capital is"}]
    chat = {name: value for name, value in CHAT.items() if name != "messages"} | {"messages": begun}

    def text_of(**given: bool) -> str:
        answer = client.post("/v1/chat/completions", json=chat | given)
        assert answer.status_code == 200, answer.text
        tokens = list(answers.calls[-1].prompt)
        assert client.post("/tokenize", json={"model": "m", "messages": begun} | given).json()["tokens"] == tokens
        return str(client.post("/detokenize", json={"model": "m", "tokens": tokens}).json()["prompt"])

    continued = text_of(continue_final_message=True)
    assert continued.endswith("The capital is")
    assert answers.calls[-1].continues_text
    assert 2 in answers.calls[-1].params.stop_token_ids  # a chat's end of turn
    assert text_of(continue_final_message=True, add_generation_prompt=False) == continued
    assert text_of(add_generation_prompt=False).endswith("The capital is<|im_end|>\n")
    assert text_of().endswith("<|im_start|>assistant\n")
    for path in ("/v1/chat/completions", "/tokenize"):
        body = {"model": "m", "messages": begun, "continue_final_message": True, "add_generation_prompt": True}
        answer = client.post(path, json=body)
        assert answer.status_code == 400
        assert "give one" in answer.json()["error"]["message"]


def test_best_of_as_many_as_are_returned_is_n() -> None:
    client, answers = api()
    streamed = client.post("/v1/completions", json=TEXT | {"best_of": 2, "n": 2, "stream": True})
    assert streamed.status_code == 200
    assert [call.params.logprobs for call in answers.calls] == [None, None]
