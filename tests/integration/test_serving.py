"""Texts of the running service: the real command of `make serve`, real Ray, the bundled model, OpenAI's client."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entmtp.llm import LLM, EngineSettings, SamplingParams
from entmtp.loadtest.traffic import Endpoint, Traffic
from entmtp.models.loading.load import encode_chat
from entmtp.suites import PAPER_SUITES, scored_prompts
from tests.helpers.local_service import MODEL, Service, chat
from tests.helpers.tiny_models import greedy

pytestmark = pytest.mark.xdist_group("ray")

CHANGE_SECONDS = 300.0
PROMPTS = ["Why is the sky blue?", "Name three rivers.", "Write a haiku about rain.", "What is 17 times 3?"]


def expected_text(bundled: tuple[PreTrainedModel, PreTrainedTokenizerBase], prompt: str, tokens: int) -> str:
    model, tokenizer = bundled
    found = greedy(model, encode_chat(tokenizer, prompt), tokens)
    return str(tokenizer.decode(found, skip_special_tokens=True))


def test_the_text_is_the_models_own(
    client: openai.OpenAI, bundled: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    for prompt in PROMPTS:
        assert chat(client, prompt) == expected_text(bundled, prompt, 24)


def test_users_at_once_get_what_each_gets_alone(client: openai.OpenAI, url: str) -> None:
    alone = [chat(client, prompt) for prompt in PROMPTS]

    async def together() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as many:
            answers = await asyncio.gather(
                *(
                    many.chat.completions.create(
                        model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=24, temperature=0
                    )
                    for prompt in PROMPTS * 2
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(together()) == alone * 2


@pytest.mark.slow
def test_a_hundred_answers_are_the_librarys(url: str) -> None:
    each = [scored_prompts(suite, 50) for suite in PAPER_SUITES]
    prompts = [prompt.text for row in itertools.zip_longest(*each) for prompt in row if prompt is not None]
    assert len(prompts) >= 100
    prompts = prompts[:100]
    library = LLM(policy="entmtp-dynamic", settings=EngineSettings(slots=8, context=2048), say=lambda _: None)
    params = SamplingParams(temperature=0.0, max_tokens=32)
    expected = [done.text for done in library.generate(prompts, params)]
    traffic = Traffic(Endpoint("service", f"{url}/v1", MODEL), prompts, 32, 600.0)
    outcomes = asyncio.run(traffic.closed(range(100), 8, lambda _: None))
    assert [outcome.error for outcome in outcomes] == [None] * 100
    assert [outcome.text for outcome in outcomes] == expected


def test_usage_tells_how_it_was_written(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": PROMPTS[0]}], max_tokens=24, temperature=0
    )
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens == 24
    assert answer.choices[0].finish_reason == "length"
    reported = usage.speculation  # type: ignore[attr-defined]
    assert reported["method"] == "entmtp-dynamic"
    assert reported["tau"] == pytest.approx(24 / reported["steps"], abs=1e-3)
    assert 0 <= reported["accepted"] <= reported["drafted"]
    assert sum(reported["accepted_by_depth"]) == reported["accepted"]
    assert {"draft", "verify", "accept", "compact", "policy", "waiting", "first_token"} == set(reported["ms"])


def test_a_cap_of_no_nodes_is_plain_decoding(client: openai.OpenAI) -> None:
    answers = [
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PROMPTS[0]}],
            max_tokens=16,
            temperature=0,
            extra_body={"speculation": {"max_nodes": nodes}},
        )
        for nodes in (0, 2)
    ]
    plain, capped = (answer.usage.speculation for answer in answers)  # type: ignore[union-attr]
    assert plain["drafted"] == 0
    assert plain["tau"] == 1.0
    assert capped["drafted"] <= 2 * capped["steps"]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_a_stream_says_the_same_and_its_usage(client: openai.OpenAI) -> None:
    whole = chat(client, PROMPTS[1])
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PROMPTS[1]}],
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in {"stop", "length"}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_strings_end_the_text_before_them(client: openai.OpenAI) -> None:
    whole = chat(client, PROMPTS[0], 40)
    stop = whole[len(whole) // 2 :][:4]
    assert chat(client, PROMPTS[0], 40, stop=[stop]) == whole[: whole.index(stop)]


def test_logprobs_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPTS[1]}],
        max_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    reported = answer.choices[0].logprobs
    assert reported is not None
    assert reported.content is not None
    assert len(reported.content) == 8
    for token in reported.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.token == token.top_logprobs[0].token  # greedy
    assert "".join(token.token for token in reported.content) == answer.choices[0].message.content


def test_plain_completions_of_texts_and_tokens(client: openai.OpenAI, url: str) -> None:
    text = "The capital of France is"
    answer = client.completions.create(model=MODEL, prompt=[text, text], max_tokens=4, temperature=0, n=2, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) == 1
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == 4
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    request = urllib.request.Request(
        f"{url}/tokenize",
        data=f'{{"model": "{MODEL}", "prompt": "{text}"}}'.encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        tokens = json.load(response)["tokens"]
    by_tokens = client.completions.create(model=MODEL, prompt=tokens, max_tokens=4, temperature=0)
    assert by_tokens.choices[0].text == answer.choices[0].text
    streamed = client.completions.create(model=MODEL, prompt=text, max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == answer.choices[0].text


def test_many_prompts_at_once_are_each_answered(client: openai.OpenAI) -> None:
    hurried = client.with_options(timeout=300, max_retries=0)
    prompts = [f"{number} plus {number} is" for number in range(6)]
    for _ in range(4):
        answer = hurried.completions.create(model=MODEL, prompt=prompts, max_tokens=2, temperature=0)
        assert len(answer.choices) == len(prompts)


def test_more_answers_than_there_is_room_for_come_one_after_another(client: openai.OpenAI) -> None:
    for prompts, n in ((9, 1), (16, 1), (1, 16), (4, 4)):
        answer = client.completions.create(
            model=MODEL, prompt=[f"{number} plus {number} is" for number in range(prompts)], n=n, max_tokens=2
        )
        assert [choice.index for choice in answer.choices] == list(range(prompts * n))
        assert chat(client, PROMPTS[3], 2)  # the engine is not taken for full
    with pytest.raises(openai.BadRequestError, match="more than 16"):
        client.completions.create(model=MODEL, prompt=["x"] * 17, max_tokens=2)
    assert chat(client, PROMPTS[3], 2)


def test_one_seed_draws_one_text(client: openai.OpenAI) -> None:
    def drawn(seed: int | None, n: int = 1) -> list[str | None]:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PROMPTS[2]}],
            max_tokens=16,
            temperature=1,
            seed=seed,
            n=n,
        )
        return [choice.message.content for choice in answer.choices]

    assert drawn(7, n=3) == drawn(7, n=3)
    assert len(set(drawn(7, n=3))) > 1
    assert drawn(7) == drawn(7, n=3)[:1]


def test_mistakes_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="smollm2-135m"):
        client.completions.create(model="gpt-5", prompt="x")
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model=MODEL, prompt="x", top_p=7)
    assert refusal.value.param == "top_p"
    with pytest.raises(openai.BadRequestError, match="unknown") as refusal:
        client.completions.create(model=MODEL, prompt="x", extra_body={"beam_width": 4})
    assert refusal.value.param == "beam_width"
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model=MODEL, prompt="word " * 9000)
    assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="choose entmtp-dynamic"):
        client.completions.create(model=MODEL, prompt="x", extra_body={"speculation": {"method": "medusa"}})
    with pytest.raises(openai.APIStatusError) as late:
        client.completions.create(model=MODEL, prompt="x", max_tokens=1000, extra_body={"timeout_s": 0.2})
    assert late.value.status_code == 504


def test_a_chat_goes_on_with_the_answers_own_message(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": PROMPTS[0]}]
    for _ in range(2):
        answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, seed=-1, top_p=0)
        messages += [answer.choices[0].message.model_dump(), {"role": "user", "content": "Go on."}]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 40


def test_the_likeliest_token_is_drawn_from_no_share_of_the_others(client: openai.OpenAI) -> None:
    assert chat(client, PROMPTS[1], temperature=1.0, top_p=0) == chat(client, PROMPTS[1])


def test_a_client_that_goes_frees_its_slot(client: openai.OpenAI, url: str) -> None:
    for _ in range(12):  # more than there are slots
        stream = client.completions.create(model=MODEL, prompt="Once", max_tokens=1500, stream=True)
        next(iter(stream))
        stream.close()
    began = time.monotonic()
    assert chat(client, PROMPTS[3], 8)
    assert time.monotonic() - began < 20  # with leaked slots it would wait for 1500 tokens


def test_another_method_takes_over_without_a_restart(service: Service, client: openai.OpenAI, config: Path) -> None:
    before, text = engine_processes(), chat(client, PROMPTS[0])

    def deploy(method: str) -> None:
        """Change the engine's method and wait until it answers by it."""
        service.change(config, method=method)
        deadline = time.monotonic() + CHANGE_SECONDS
        while answering_method(client) != method:
            assert time.monotonic() < deadline
            time.sleep(0.5)

    try:
        deploy("autoregressive")
        assert chat(client, PROMPTS[0]) == text
        assert engine_processes() == before
    finally:
        deploy("entmtp-dynamic")  # other tests use the service too


def answering_method(client: openai.OpenAI) -> str:
    answer = client.completions.create(model=MODEL, prompt="x", max_tokens=2, temperature=0)
    return str(answer.usage.speculation["method"])  # type: ignore[union-attr]


def engine_processes() -> set[int]:
    title = "ray::ServeReplica:entmtp:smollm2"
    return {one.pid for one in psutil.process_iter(["cmdline"]) if "".join(one.info["cmdline"] or []).startswith(title)}
