"""Scores of prompts over HTTP, by the names of OpenAI and vLLM: those of the model run alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deployments.engines.replica import EngineReplica
from deployments.settings import EngineArgs
from entmtp.decoding.outputs import PromptLogprobs, RequestOutput
from entmtp.llm import LLM, EngineSettings
from tests.helpers.http_api import api, events, replica_api
from tests.helpers.tiny_models import plain_logits

pytestmark = pytest.mark.usefixtures("loads_once")

ARGS = EngineArgs.parse(
    name="e", model_name="m", method="entmtp-dynamic", engine={"slots": 2, "context": 512, "prefill_tokens": 48}
)
TEXT = {"model": "m", "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
PAIRS = [
    ("The capital of France is", " Paris."),
    ("The capital of France is", " a banana, which everybody knows."),
    ("Q: What is 2 + 2?\nA:", " 4"),
    ("One two three four " * 30, "five six seven"),
    ("A", "\n\n"),
]


@pytest.fixture(scope="module")
def replica(loads_once: None) -> Iterator[EngineReplica]:
    made = EngineReplica(ARGS)
    yield made
    made._engine.close()


@pytest.fixture(scope="module")
def client(replica: EngineReplica) -> TestClient:
    return replica_api(replica, ARGS)


def wanted(model: PreTrainedModel, ids: list[int]) -> list[float]:
    """Log-probability of each token after the first, of the model run alone."""
    logprobs = plain_logits(model, ids)[:-1].log_softmax(-1)
    return [float(row[token]) for row, token in zip(logprobs, ids[1:], strict=True)]


@pytest.mark.parametrize("tokens", [0, 1])
def test_log_likelihoods_are_the_models_own(
    client: TestClient, bundled: tuple[PreTrainedModel, PreTrainedTokenizerBase], tokens: int
) -> None:
    """As lm-eval's `local-completions` requests them: token ids, one new token, and all logprobs but its own."""
    model, tokenizer = bundled
    for context, continuation in PAIRS:
        first, ids = len(tokenizer(context)["input_ids"]), tokenizer(context + continuation)["input_ids"]
        body = TEXT | {"prompt": [ids], "max_tokens": tokens, "seed": 1234}
        (choice,) = client.post("/v1/completions", json=body).json()["choices"]
        logprobs = choice["logprobs"]
        assert [len(logprobs[name]) for name in logprobs] == [len(ids) + tokens] * 4
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        end = len(ids)
        expected = wanted(model, ids)[first - 1 :]
        assert sum(logprobs["token_logprobs"][first:end]) == pytest.approx(sum(expected), abs=1e-4)
        greedy = [max(each.values()) for each in logprobs["top_logprobs"][first:end]]
        best = plain_logits(model, ids)[first - 1 : end - 1].log_softmax(-1).amax(-1).tolist()
        assert greedy == pytest.approx(best, abs=1e-4)


def test_the_library_scores_the_same(bundled: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = bundled
    llm = LLM(settings=EngineSettings(slots=2, context=512), say=lambda _: None)
    scores = llm.score([context for context, _ in PAIRS], [continuation for _, continuation in PAIRS])
    for score, (context, continuation) in zip(scores, PAIRS, strict=True):
        ids, first = tokenizer(context + continuation)["input_ids"], len(tokenizer(context.rstrip())["input_ids"])
        expected = wanted(model, ids)[first - 1 :]
        assert score.logprobs == pytest.approx(expected, abs=1e-4)
        assert score.total == pytest.approx(sum(expected), abs=1e-4)
        likeliest = plain_logits(model, ids).argmax(-1).tolist()
        assert score.is_greedy == (likeliest[first - 1 : -1] == ids[first:])
    assert any(score.is_greedy for score in scores)
    assert not all(score.is_greedy for score in scores)
    assert llm.score([[1, 2]], [[3]])[0].logprobs == pytest.approx(wanted(model, [1, 2, 3])[1:], abs=1e-4)


def test_the_prompt_comes_before_its_answer(client: TestClient) -> None:
    body = TEXT | {"prompt": "The capital of France is", "max_tokens": 6}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]
    plain = client.post("/v1/completions", json=body | {"echo": False}).json()["choices"][0]
    assert whole["text"] == body["prompt"] + plain["text"]
    assert "".join(whole["logprobs"]["tokens"]) == whole["text"]
    offsets = whole["logprobs"]["text_offset"]
    assert all(whole["text"][at:].startswith(token) for at, token in zip(offsets, whole["logprobs"]["tokens"]))
    bare = client.post("/v1/completions", json=body | {"logprobs": None}).json()["choices"][0]
    assert (bare["text"], bare["logprobs"]) == (whole["text"], None)
    chunks = events(client.post("/v1/completions", json=body | {"stream": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == whole["text"]
    streamed = [one for chunk in chunks[:-1] for one in chunk["choices"][0]["logprobs"]["token_logprobs"]]
    assert streamed[1:] == pytest.approx(whole["logprobs"]["token_logprobs"][1:], abs=1e-4)


def test_nothing_is_written_where_no_token_is_wanted(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={"model": "m", "prompt": ["Once", "Twice"], "max_tokens": 0}).json()
    assert [choice["text"] for choice in answer["choices"]] == ["", ""]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 2
    assert answer["usage"]["completion_tokens"] == 0


def test_vllms_field_is_in_both_endpoints(
    client: TestClient, bundled: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    model, tokenizer = bundled
    ids = tokenizer("The sky is blue")["input_ids"]
    body = {"model": "m", "prompt": ids, "max_tokens": 1, "prompt_logprobs": 2}
    first, *rest = client.post("/v1/completions", json=body).json()["choices"][0]["prompt_logprobs"]
    assert first is None
    for entry, token, logprob in zip(rest, ids[1:], wanted(model, ids), strict=True):
        own = entry[str(token)]
        assert own["logprob"] == pytest.approx(logprob, abs=1e-4)
        assert own["decoded_token"] == tokenizer.decode([token])
        assert {each["rank"] for each in entry.values()} == {1, 2, own["rank"]}
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "prompt_logprobs": 0}
    found = client.post("/v1/chat/completions", json=chat).json()["prompt_logprobs"]
    assert found[0] is None
    assert all(len(entry) == 1 for entry in found[1:])


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"echo": "yes"}, "echo"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(given: dict[str, Any], param: str) -> None:
    refusing, answers = api()
    answer = refusing.post("/v1/completions", json={"model": "m", "prompt": "a"} | given)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not answers.calls


def test_half_a_character_at_a_prompts_end_is_not_echoed() -> None:
    ids = [504, 254]  # " a" and a byte that no character begins with
    scores = [PromptLogprobs(-1.0, [], 2)]
    speaking, _ = api(RequestOutput("r", [28], " c", prompt_logprobs=scores, finish_reason="stop"))
    (choice,) = speaking.post("/v1/completions", json={"model": "m", "prompt": ids, "echo": True}).json()["choices"]
    assert not choice["text"].startswith("\ufffd")
    assert choice["text"].endswith(" c")


def test_a_chat_is_not_echoed() -> None:
    refusing, _ = api()
    answer = refusing.post("/v1/chat/completions", json={"model": "m", "messages": [], "echo": True})
    assert answer.json()["error"]["param"] == "echo"
