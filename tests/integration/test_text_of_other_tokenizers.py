"""The service's answers with tokenizers that spell spaces and bytes as tokens, from HTTP to the engine and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deployments.engines.client import EngineClient
from deployments.engines.replica import EngineReplica
from deployments.http.access_log import LogSink
from deployments.http.auth import ApiKeys
from deployments.http.routes import make_api
from deployments.settings import AppArgs, EngineArgs
from tests.helpers.chained_models import save_chained
from tests.helpers.in_process_replica import InProcessHandle
from tests.helpers.tokenizers import DECODERS, SPACE, ids, with_decoder

TEMPLATE = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
EMOJI = [f"<0x{byte:02X}>" for byte in "😀".encode()]
WORDS = [f"{SPACE}Paris", f"{SPACE}the", f"{SPACE}capital"]
TOKENIZER = with_decoder(DECODERS["byte fallback, strip"])
TOKENIZER.add_special_tokens(["<|im_end|>"])


def tokens(*names: str) -> list[int]:
    return ids(TOKENIZER, *names)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = save_chained(
        tmp_path_factory.mktemp("model"),
        TOKENIZER,
        tokens(f"{SPACE}is", *WORDS, "</s>"),
        tokens("zz|", "true", "<0x0A>", "<0xE2>", "日", "</s>"),
        tokens("<s>", *EMOJI, f"{SPACE}a", "<|im_end|>", "b", "b"),
        template=TEMPLATE,
        eos="<|im_end|>",
    )
    engine = {"name": "e", "model_name": "m", "model": str(folder), "method": "autoregressive"}
    args = AppArgs.parse(engines=[engine | {"engine": {"slots": 4, "context": 256}}])

    async def ready() -> dict[str, bool]:
        return {"e": True}

    async def metrics() -> str:
        return ""

    replica = EngineReplica(EngineArgs.parse(**args.engines[0].model_dump()))
    service = EngineClient(args, {"e": InProcessHandle(replica)}, None)
    with TestClient(make_api(service, ApiKeys({}), ready, metrics, LogSink(lambda line: None, b"", False))) as made:
        yield made
    replica._engine.close()


def completion(client: TestClient, **body: Any) -> dict[str, Any]:
    requested = {"model": "m", "prompt": tokens(f"{SPACE}the", f"{SPACE}capital", f"{SPACE}is"), "temperature": 0}
    answer = client.post("/v1/completions", json=requested | {"max_tokens": 3} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chat(client: TestClient, **body: Any) -> dict[str, Any]:
    requested = {"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 0, "max_tokens": 12}
    answer = client.post("/v1/chat/completions", json=requested | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_completion_goes_on_from_the_prompts_text(client: TestClient) -> None:
    (choice,) = completion(client, logprobs=2)["choices"]
    assert choice["text"] == " Paris the capital"
    reported = choice["logprobs"]
    assert reported["tokens"] == [" Paris", " the", " capital"]
    assert reported["text_offset"] == [0, 6, 10]
    for at, top in enumerate(reported["top_logprobs"]):
        assert len(top) == 2
        assert top[reported["tokens"][at]] == reported["token_logprobs"][at]


def test_a_stop_text_may_begin_with_the_first_space(client: TestClient) -> None:
    (choice,) = completion(client, stop=[" Paris"])["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    (choice,) = completion(client, stop=[" the"])["choices"]
    assert choice["text"] == " Paris"


def test_a_stream_has_the_offsets_of_the_whole(client: TestClient) -> None:
    whole = completion(client, logprobs=1)["choices"][0]["logprobs"]
    body = {"model": "m", "prompt": tokens(f"{SPACE}is"), "temperature": 0, "max_tokens": 3, "logprobs": 1}
    lines = client.post("/v1/completions", json=body | {"stream": True}).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for field in ("tokens", "text_offset", "token_logprobs"):
        assert [one for part in parts for one in part[field]] == pytest.approx(whole[field])


def test_offsets_count_the_replacement_characters_of_the_text(client: TestClient) -> None:
    body = {"prompt": tokens("zz|"), "logprobs": 0}
    (choice,) = completion(client, max_tokens=4, **body)["choices"]
    assert choice["text"] == "true\ufffd\ufffd日"
    assert choice["logprobs"]["text_offset"] == [0, 4, 5, 6]
    (choice,) = completion(client, max_tokens=2, prompt=tokens("<s>"), logprobs=0)["choices"]
    assert choice["text"] == "\ufffd\ufffd"
    assert choice["logprobs"]["text_offset"] == [0, 1]
    (choice,) = completion(client, max_tokens=5, prompt=tokens("<s>", *EMOJI[:2]), logprobs=0)["choices"]
    assert choice["text"].startswith("😀 a")
    assert choice["logprobs"]["text_offset"][:3] == [0, 0, 1]


def test_half_a_character_of_a_prompt_does_not_leak_into_the_answer(client: TestClient) -> None:
    (choice,) = completion(client, prompt=tokens(f"{SPACE}the", *EMOJI[:2]), max_tokens=3)["choices"]
    assert choice["text"] == "😀 a"


def test_a_chat_answer_has_its_bytes_and_ends_with_its_turn(client: TestClient) -> None:
    (choice,) = chat(client, logprobs=True, top_logprobs=3)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("😀 a", "stop")
    reported = choice["logprobs"]["content"]
    assert bytes(byte for one in reported for byte in one["bytes"]).decode() == "😀 a"
    assert reported[0]["token"] == "bytes:\\xf0"
    assert all(len({each["token"] for each in one["top_logprobs"]}) == 3 for one in reported)


def test_the_tokens_of_a_prompt_are_cached_once(client: TestClient) -> None:
    prompt = tokens(f"{SPACE}a", "b") * 30
    for stream in (False, True):
        for n in (1, 4):
            body = {"model": "m", "prompt": [prompt] * 2, "max_tokens": 2, "temperature": 0, "n": n}
            if stream:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            answer = client.post("/v1/completions", json=body)
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
            usage = json.loads(lines[-1])["usage"] if stream else answer.json()["usage"]
            assert usage["prompt_tokens"] == 2 * len(prompt)
            assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


def test_a_newline_before_half_a_character_is_decoded_as_in_the_whole(client: TestClient) -> None:
    (choice,) = completion(client, prompt=tokens("zz|"), max_tokens=9)["choices"]
    assert choice["text"] == TOKENIZER.decode(tokens("true", "<0x0A>", "<0xE2>", "日")) == "true��日"
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("temperature", [0, 1])
def test_bytes_that_make_no_character_end_nobodys_answer(client: TestClient, temperature: float) -> None:
    bad = tokens("<0x0A>", "<0xE2>", f"{SPACE}a", f"{SPACE}the", "<0xF0>", "<0x9F>")
    for seed in range(6):
        bias = {str(token): 100 for token in bad}
        body = {"temperature": temperature, "seed": seed, "max_tokens": 40, "logprobs": 0, "logit_bias": bias}
        (choice,) = completion(client, **body)["choices"]
        assert choice["finish_reason"] == "length"
        names = [one.encode().decode() for one in choice["logprobs"]["tokens"]]
        assert len(names) == 40
    (choice,) = completion(client)["choices"]
    assert choice["text"] == " Paris the capital"


def test_stop_texts_do_not_end_an_answer_before_min_tokens(client: TestClient) -> None:
    body = {"logit_bias": {str(tokens("b")[0]): 100}, "max_tokens": 40, "stop": ["b"]}
    answer = completion(client, **body, min_tokens=30)
    assert answer["usage"]["completion_tokens"] == 31
    assert answer["choices"][0]["text"] == "b" * 30
    assert completion(client, **body)["usage"]["completion_tokens"] == 1
