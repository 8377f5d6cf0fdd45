"""The HTTP API over engines that answer what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import cache
from typing import Any
from unittest.mock import patch

from fastapi.testclient import TestClient

from deployments.engines import client
from deployments.engines.client import EngineClient
from deployments.engines.rate_limit import RateLimiter
from deployments.engines.replica import EngineReplica
from deployments.http.access_log import LogSink
from deployments.http.auth import ApiKeys
from deployments.http.routes import make_api
from deployments.protocol.messages import CallStream, Failure
from deployments.settings import AppArgs, EngineArgs
from entmtp.decoding.outputs import RequestOutput, RequestStats
from entmtp.decoding.request import Request
from entmtp.models.loading.load import load_tokenizer
from tests.helpers.in_process_replica import InProcessHandle

ENGINE = {"name": "e", "model_name": "m", "engine": {"context": 256}}
STATS = RequestStats(
    accepted=2,
    accepted_by_depth=[1, 1],
    deepest=3,
    tree_counts={4: 2},
    part_ms={"draft": 1.0, "verify": 2.0},
    first_token_ms=3.0,
    method="entmtp-dynamic",
    task="sharegpt",
)
GOOD = [RequestOutput("r", [504, 253], " a b"), RequestOutput("r", [28], " c", finish_reason="stop", stats=STATS)]
SECRET = "sk-secret"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a private question"}], "max_tokens": 8}


class Answers:
    """Stands for Serve's handle of an engine: every call is answered with what is given."""

    def __init__(self, items: Sequence[RequestOutput | Failure | Exception | asyncio.Event]) -> None:
        self.items = items
        self.calls: list[Request] = []
        self.pause = 0.0
        self.waiting = False

    @property
    def generate(self) -> Answers:
        return self

    def options(self, *, stream: bool) -> Answers:
        return self

    def remote(self, call: Request) -> Answers:
        self.calls.append(call)
        return self

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> CallStream:
        await asyncio.sleep(self.pause)
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, asyncio.Event):
                self.waiting = True
                await item.wait()
            else:
                yield item


class Remote:
    """Stands for Serve's handle of the limiter."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter

    @property
    def take(self) -> Remote:
        return self

    async def remote(self, key: str, tokens: int) -> float:
        return self._limiter.take(key, tokens)


Lines = list[dict[str, Any]]
_tokenizer = cache(load_tokenizer)
"""The tokenizer of a model, read once: it takes longer than all else that a test of the API does."""


def api(
    *items: RequestOutput | Failure | Exception, keys: ApiKeys | None = None, lines: Lines | None = None, **args: Any
) -> tuple[TestClient, Answers]:
    settings = AppArgs.parse(**{"engines": [ENGINE]} | args)
    answers = Answers(items or GOOD)

    async def ready() -> dict[str, bool]:
        return {"e": bool(items)}

    async def metrics() -> str:
        return "ray_entmtp_x 1\n"

    with patch.object(client, "load_tokenizer", _tokenizer):
        service = EngineClient(settings, {"e": answers}, Remote(RateLimiter(settings.limits)))
    written: Lines = [] if lines is None else lines
    log = LogSink(lambda line: written.append(dict(line)), b"a secret", settings.log_prompts)
    made = make_api(service, keys or ApiKeys({}), ready, metrics, log)
    return TestClient(made, raise_server_exceptions=False), answers


def events(text: str) -> list[Any]:
    found = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


def replica_api(replica: EngineReplica, args: EngineArgs, **more: Any) -> TestClient:
    """The HTTP API over one replica in this process, which has been made with ``args``."""

    async def ready() -> dict[str, bool]:
        return {args.name: True}

    async def metrics() -> str:
        return ""

    with patch.object(client, "load_tokenizer", _tokenizer):
        service = EngineClient(AppArgs(engines=[args], **more), {args.name: InProcessHandle(replica)}, None)
    log = LogSink(lambda line: None, b"a secret")
    return TestClient(make_api(service, ApiKeys({}), ready, metrics, log), raise_server_exceptions=False)
