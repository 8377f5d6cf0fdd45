"""Two real replicas of a tiny model: what one request can do to them, and what their deaths do to a request."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from transformers import PreTrainedTokenizerFast

from entmtp.ray_head import LOCAL_SETTINGS, free_ports
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tokenizers import ids, made

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

APP, ENGINE, MODEL = "killers", "tiny", "m"
TITLE = f"ray::ServeReplica:{APP}:{ENGINE}"
PROMPTS = [f"the capital {number}" for number in range(6)]
_START_SECONDS = 240.0


def save(folder: Path) -> list[int]:
    """A tiny model whose bytes are tokens; returns tokens of which some sequences make no text."""
    tokenizer = made("byte fallback")
    size = tokenizer.get_vocab_size()
    tiny_model("llama", vocab_size=size, max_position_embeddings=512).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return ids(tokenizer, "<0x0A>", "<0xE2>", "▁a")


def replicas() -> set[int]:
    """Process ids."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(TITLE):
                found.add(process.pid)
    return found


@pytest.fixture(scope="module")
def deadly(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    return save(tmp_path_factory.getbasetemp() / "model")


@pytest.fixture(scope="module")
def url(deadly: list[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service, with two replicas."""
    import ray
    from ray import serve

    from deployments.app import build
    from deployments.serve_local import node_environment
    from deployments.settings import AppArgs

    folder = tmp_path_factory.getbasetemp()
    (port,) = free_ports(1)
    before = dict(os.environ)
    os.environ |= LOCAL_SETTINGS | node_environment(before)
    try:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
        engine: dict[str, Any] = {
            "name": ENGINE,
            "model_name": MODEL,
            "model": str(folder / "model"),
            "method": "autoregressive",
        }
        engine |= {"kernels": "eager", "num_cpus": 1, "engine": {"slots": 8, "context": 512, "max_waiting": 64}}
        engine |= {"autoscaling": {"min_replicas": 2, "max_replicas": 2}}
        serve.run(
            build(AppArgs.parse(engines=[engine], log_folder=str(folder / "requests"))), name=APP, route_prefix="/"
        )
        yield f"http://127.0.0.1:{port}/v1/completions"
    finally:
        with suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def body(prompt: str, tokens: int = 48, **options: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0} | options


async def answered(session: aiohttp.ClientSession, url: str, given: dict[str, Any]) -> tuple[int, Any]:
    async with session.post(url, json=given) as response:
        return response.status, await response.json()


async def events(session: aiohttp.ClientSession, url: str, given: dict[str, Any]) -> AsyncIterator[Any]:
    async with session.post(url, json=given | {"stream": True}) as response:
        assert response.status == 200
        async for line in response.content:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_START_SECONDS))


async def both_run(besides: set[int]) -> set[int]:
    """Two replicas that are none of those."""
    end = time.monotonic() + _START_SECONDS
    while len(found := replicas() - besides) < 2:
        assert time.monotonic() < end
        await asyncio.sleep(0.2)
    return found


def test_a_text_that_decoders_stumble_over_ends_no_replica_and_harms_nobody(url: str, deadly: list[int]) -> None:
    async def scene() -> None:
        before = await both_run(set())
        async with session() as one:
            expected = {prompt: await answered(one, url, body(prompt)) for prompt in PROMPTS}
            ended = asyncio.Event()
            others: list[tuple[int, Any]] = []

            async def other(at: int) -> None:
                prompt = PROMPTS[at]
                while not ended.is_set():
                    status, answer = await answered(one, url, body(prompt))
                    assert answer["choices"][0]["text"] == expected[prompt][1]["choices"][0]["text"]
                    others.append((status, answer))

            bystanders = [asyncio.create_task(other(at)) for at in range(len(PROMPTS))]
            texts: list[str] = []
            bias = {str(token): 100.0 for token in deadly}
            for seed in range(20):
                status, answer = await answered(
                    one, url, body("the", logit_bias=bias, temperature=2.0, seed=seed, logprobs=1)
                )
                assert status == 200
                assert answer["usage"]["completion_tokens"] == 48
                texts.append(answer["choices"][0]["text"])
                assert set(texts[-1]) <= set("\n a\ufffd")
            assert any("\ufffd\ufffd a" in text for text in texts)  # of bytes that make no character
            ended.set()
            await asyncio.gather(*bystanders)
        assert len(others) >= len(PROMPTS)
        assert {status for status, _ in others} == {200}
        assert replicas() == before

    asyncio.run(scene())


def test_a_request_outlives_one_death_and_is_given_up_after_the_second(url: str) -> None:
    given = body("the", tokens=450)

    async def scene() -> None:
        async with session() as one:
            status, whole = await answered(one, url, given)
            assert status == 200
            text, killed, deaths = "", set[int](), 0
            async for event in events(one, url, given):
                if "error" in event:
                    assert event["error"]["type"] == "server_error"
                    assert "not tried again" in event["error"]["message"]
                    break
                text += event["choices"][0]["text"]
                # What comes after a death is new: another replica has written all of it again.
                if text and deaths < 2 and len(alive := replicas() - killed) == 2:
                    for pid in alive:
                        os.kill(pid, signal.SIGKILL)
                    killed, deaths = killed | alive, deaths + 1
            else:
                pytest.fail("the request was answered by a third replica")
            assert deaths == 2
            assert whole["choices"][0]["text"].startswith(text)
            await both_run(killed)
            # Others are served as soon as there are replicas again.
            assert (await answered(one, url, given))[1]["choices"][0]["text"] == whole["choices"][0]["text"]

    asyncio.run(scene())
