"""A replica with the bundled model: what it answers to calls, and what `user_config` changes while calls run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deployments.engines.autoscaling import OUTSTANDING, SPEED
from deployments.engines.client import EngineClient
from deployments.engines.prefix_hash import block_hashes
from deployments.engines.replica import EngineReplica
from deployments.http.access_log import LogSink
from deployments.http.auth import ApiKeys
from deployments.http.routes import make_api
from deployments.protocol.messages import Failure
from deployments.settings import AppArgs, EngineArgs
from entmtp.decoding import engine as engine_module
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request
from entmtp.decoding.text import TextStream
from entmtp.errors import EntMTPError
from entmtp.models.loading.load import encode_chat
from entmtp.settings import SamplingParams
from tests.helpers.in_process_replica import InProcessHandle
from tests.helpers.tiny_models import greedy

pytestmark = pytest.mark.usefixtures("loads_once")

ARGS = EngineArgs.parse(name="e", model_name="m", method="hydra", engine={"slots": 2, "context": 256, "max_waiting": 1})
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, seed=0)


@pytest.fixture(scope="module")
def replica(loads_once: None) -> Iterator[EngineReplica]:
    made = EngineReplica(ARGS)
    yield made
    made._engine.close()


@pytest.fixture(scope="module")
def prompt(bundled: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> list[int]:
    return encode_chat(bundled[1], "Name three rivers of Europe, and say where each of them begins and where it ends.")


async def answered(replica: EngineReplica, call: Request) -> list[RequestOutput | Failure]:
    first, *items = [item async for item in replica.generate(call)]
    assert isinstance(first, RequestOutput)
    assert first.is_empty
    return items


def tokens(items: list[RequestOutput | Failure]) -> list[int]:
    return [token for item in items if isinstance(item, RequestOutput) for token in item.tokens]


def test_calls_are_answered_and_accounted_for(
    replica: EngineReplica, prompt: list[int], bundled: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    async def scene() -> None:
        items = await answered(replica, Request("a", prompt, GREEDY))
        assert tokens(items) == greedy(bundled[0], prompt, 16)
        last = items[-1]
        assert isinstance(last, RequestOutput)
        assert last.finish_reason == "length"
        assert last.stats is not None
        assert (last.stats.method, last.stats.task) == (ARGS.method, ARGS.task)
        assert last.stats.accepted == sum(last.stats.accepted_by_depth)
        assert last.stats.deepest >= len(last.stats.accepted_by_depth) > 0
        reported = await replica.record_autoscaling_stats()
        assert reported[OUTSTANDING] == 0
        assert reported[SPEED] > 0
        assert set(block_hashes(prompt, "")) <= set((await replica.record_routing_stats())["prefixes"])

    asyncio.run(scene())


def test_several_answers_to_one_seed_differ_by_their_numbers(replica: EngineReplica, prompt: list[int]) -> None:
    drawn = GREEDY.model_copy(update={"temperature": 1.0})

    async def scene() -> None:
        numbers = [(0, 0), (1, 0), (0, 1)]  # of answers and prompts
        calls = [Request(f"n{at}", prompt, drawn, one, prompt_index=other) for at, (one, other) in enumerate(numbers)]
        first, *more = [tokens(items) for items in await asyncio.gather(*(answered(replica, one) for one in calls))]
        assert len({tuple(text) for text in (first, *more)}) == 3
        assert tokens(await answered(replica, calls[0])) == first

    asyncio.run(scene())


def test_a_stop_text_ends_an_answer_after_min_tokens_alone(
    replica: EngineReplica, bundled: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    prompt = bundled[1]("1, 2, 3, 4,")["input_ids"]
    params = GREEDY.model_copy(update={"max_tokens": 40, "stop": ["7"]})

    async def text(call: Request) -> tuple[str, int]:
        items = [item for item in await answered(replica, call) if isinstance(item, RequestOutput)]
        return "".join(item.text for item in items), len(tokens(list(items)))

    async def scene() -> None:
        early, few = await text(Request("early", prompt, params, continues_text=True))
        assert (early, few < 30) == (" 5, 6, ", True)
        late, count = await text(
            Request("late", prompt, params.model_copy(update={"min_tokens": 30}), continues_text=True)
        )
        assert 30 <= count <= 40
        assert late.startswith(early + "7")

    asyncio.run(scene())


def test_failures_have_kinds(replica: EngineReplica, prompt: list[int]) -> None:
    async def scene() -> None:
        (long,) = await answered(replica, Request("long", prompt * 10, GREEDY))
        assert isinstance(long, Failure)
        assert long.kind == "invalid"
        many = await asyncio.gather(*(answered(replica, Request(str(at), prompt, GREEDY)) for at in range(8)))
        ends = [items[-1] for items in many]
        assert any(isinstance(end, Failure) and end.kind == "full" for end in ends)
        assert any(isinstance(end, RequestOutput) and end.finish_reason == "length" for end in ends)

    asyncio.run(scene())


def test_a_caller_that_goes_leaves_nothing_behind(replica: EngineReplica, prompt: list[int]) -> None:
    async def scene() -> None:
        stream = replica.generate(Request("gone", prompt, GREEDY.model_copy(update={"max_tokens": 150})))
        await anext(stream)  # it is placed
        await anext(stream)
        await stream.aclose()
        while (await replica.record_autoscaling_stats())[OUTSTANDING]:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_another_policy_takes_over_while_a_call_runs(
    replica: EngineReplica,
    prompt: list[int],
    bundled: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        running = asyncio.create_task(answered(replica, Request("r", prompt, GREEDY)))
        await asyncio.sleep(0)
        await replica.reconfigure({"method": "entmtp-dynamic", "task": "gsm8k", "prefill_tokens": 32})
        assert tokens(await running) == greedy(bundled[0], prompt, 16)
        assert replica._engine.engine.settings.prefill_tokens == 32
        await replica.reconfigure({})
        assert replica._engine.engine.settings.prefill_tokens == ARGS.engine.prefill_tokens
        policy = replica._engine.engine.policy
        for wrong, name in (({"method": "medusa"}, "heads"), ({"slots": 9}, "slots"), ({"task": "chess"}, "chess")):
            with pytest.raises(EntMTPError, match=name):
                await replica.reconfigure(wrong)
        replica.check_health()  # Serve asks when a replica has started; from now on a mistake must not end it
        await replica.reconfigure({"task": "chess"})
        assert "chess" in caplog.text
        assert replica._engine.engine.policy is policy

    asyncio.run(scene())


def test_a_dead_loop_is_seen_and_told(prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    replica = EngineReplica(ARGS)
    replica.check_health()

    async def scene() -> None:
        monkeypatch.setattr(replica._engine.engine, "step", None)
        (failure,) = await answered(replica, Request("d", prompt, GREEDY))
        assert isinstance(failure, Failure)
        assert failure.kind == "dead"
        late = [item async for item in replica.generate(Request("late", prompt, GREEDY))]
        assert [item.kind for item in late if isinstance(item, Failure)] == ["unavailable"]
        assert len(late) == 1

    asyncio.run(scene())
    with pytest.raises(RuntimeError, match="loop has ended"):
        replica.check_health()


def api_of(replica: EngineReplica, lines: list[dict[str, Any]]) -> TestClient:
    """The HTTP API over one replica."""

    async def ready() -> dict[str, bool]:
        return {}

    async def metrics() -> str:
        return ""

    service = EngineClient(AppArgs(engines=[ARGS]), {"e": InProcessHandle(replica)}, None)
    log = LogSink(lambda line: lines.append(dict(line)), b"secret")
    return TestClient(make_api(service, ApiKeys({}), ready, metrics, log), raise_server_exceptions=False)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("good", [0, 2])
def test_a_request_that_fails_tells_why(
    path: str, stream: bool, good: int, replica: EngineReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(TextStream):
        """Breaks after ``good`` tokens."""

        taken = 0

        def push(self, token: int) -> str:
            self.taken += 1
            if self.taken > good:
                raise ValueError("no text")
            return super().push(token)

    monkeypatch.setattr(engine_module, "TextStream", Broken)
    # Plain steps: a tree's size depends on this machine's costs, and one may bring all tokens up to the broken one.
    requested: dict[str, Any] = {"model": "m", "stream": stream, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    requested |= {"speculation": {"max_nodes": 0}}
    requested |= {"prompt": "Once"} if path == "completions" else {"messages": [{"role": "user", "content": "Hello"}]}
    lines: list[dict[str, Any]] = []
    answer = api_of(replica, lines).post(f"/v1/{path}", json=requested)
    begun = stream and good > 0
    assert answer.status_code == (200 if begun else 500)
    last = answer.text.strip().splitlines()[-1].removeprefix("data: ")
    error = json.loads(last)["error"]
    assert error["type"] == "server_error"
    assert "making its text failed (ValueError)" in error["message"]
    assert "data: [DONE]" not in answer.text
    assert lines[0]["status"] == 500
    assert lines[0]["error"]["message"] == error["message"]
