"""The HTTP API on a socket, over a real engine whose model writes given texts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import uvicorn

from deployments.engines.client import EngineClient
from deployments.engines.replica import EngineReplica
from deployments.http.access_log import LogSink
from deployments.http.auth import ApiKeys, _digest
from deployments.http.routes import make_api
from deployments.settings import AppArgs
from tests.helpers.http_api import SECRET, Lines
from tests.helpers.in_process_replica import InProcessHandle
from tests.helpers.scripted_model import save_scripted_model

CALL = ["<tool_call>", '\n{"name": "wea', 'ther", "arguments": ', '{"city": "Par', 'is"}}', "\n</tool_call>"]
SCRIPTS = {
    "say hello": ["Hello", " there", "."],
    "say nothing": [],
    "call once": ["I look", ".\n", *CALL],
    "call twice": [*CALL, "\n", *CALL],
    "call another": ["<tool_call>", '{"name": "other", "arguments": {}}', "</tool_call>"],
    "break off": [*CALL[:-1], " what?"],
    "think": ["<think>", "\nHm", "m.", "\n</think>", "\n\nYes", "."],
    "think and call": ["<think>", "Hm.", "</think>", "\n", *CALL],
    "</tool_response>": ["It", " rains", "."],
}
"""By the end of a prompt the parts of the answer to it."""

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
CITY = {"city": "Paris"}
ARGUMENTS = '{"city":"Paris"}'


@contextmanager
def scripted_service(folder: Path, lines: Lines) -> Iterator[str]:
    """Address of a service whose model is saved in ``folder``; the access log goes to ``lines``."""
    engine = {"name": "e", "model_name": "m", "model": str(save_scripted_model(folder, SCRIPTS))}
    more = {"method": "autoregressive", "engine": {"context": 1024, "slots": 2}, "reasoning_format": "think"}
    args = AppArgs.parse(engines=[engine | more])
    replica = EngineReplica(args.engines[0])
    client = EngineClient(args, {"e": InProcessHandle(replica)}, None)
    log = LogSink(lambda line: lines.append(dict(line)), b"secret")
    app = make_api(client, ApiKeys({"alice": _digest(SECRET)}), _ready, _metrics, log)
    with served(app) as url:
        yield url
    replica._engine.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Address of an application on a socket."""
    server = uvicorn.Server(uvicorn.Config(cast(Any, app), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


async def _ready() -> dict[str, bool]:
    return {"e": True}


async def _metrics() -> str:
    return ""
