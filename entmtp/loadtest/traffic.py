"""Load on an OpenAI-compatible endpoint: sends requests as users do, and records when each chunk is received.

In a *closed loop* each of N users sends the next request when the last one ends: this measures throughput. An *open
loop* sends at random times (a Poisson process), independently of the answers: this measures latency, overload included.

Requests are written and parsed without OpenAI's client. It takes milliseconds for each, which a service on the same
machine would lose.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from entmtp.errors import EntMTPError

OnOutcome = Callable[["RequestOutcome"], None]
_LINE_BYTES = 2**20


@dataclass(frozen=True)
class Endpoint:
    """An endpoint under test.

    Attributes:
        name: in tables.
        url: with the API's version, such as http://127.0.0.1:8000/v1.
        method: of the extension ``speculation``; None for the service's default, and for any other service.
    """

    name: str
    url: str
    model: str
    method: str | None = None
    key: str = "none"

    @classmethod
    def parse(cls, text: str, model: str, key: str) -> Endpoint:
        """Parse NAME=URL or NAME=URL#METHOD.

        Raises:
            EntMTPError: the text is neither.
        """
        name, equals, rest = text.partition("=")
        url, _, method = rest.partition("#")
        if not name or not equals or not url.startswith(("http://", "https://")):
            raise EntMTPError(f"endpoint: '{text}' is not NAME=URL or NAME=URL#METHOD with an http address; give one")
        return cls(name, url, model, method or None, key)


@dataclass
class RequestOutcome:
    """Outcome of one request; times in seconds since the run began.

    Attributes:
        chunks: time of each chunk with text.
        tokens: new tokens, by the service's own count.
        tau: tokens per step, where the service reports it.
        error: kind of the error, if the request failed.
    """

    number: int
    began: float
    chunks: list[float] = field(default_factory=list)
    ended: float = 0.0
    text: str = ""
    tokens: int = 0
    tau: float | None = None
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Seconds until the first chunk."""
        return self.chunks[0] - self.began

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None where there is no other."""
        return (self.chunks[-1] - self.chunks[0]) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def itl(self) -> list[float]:
        """Seconds between chunks; a chunk may have several tokens."""
        return [after - before for before, after in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def seconds(self) -> float:
        """Seconds from begin to end."""
        return self.ended - self.began

    def seconds_for(self, tokens: int) -> float:
        """:attr:`seconds` without those of the tokens after the first ``tokens``, at the request's own pace."""
        return self.seconds - (self.tokens - tokens) * (self.tpot or 0.0)


class Traffic:
    """Sends prompts to one endpoint, greedily."""

    def __init__(self, endpoint: Endpoint, prompts: Sequence[str], max_tokens: int, timeout: float) -> None:
        self.endpoint = endpoint
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._timeout = timeout
        self._began = 0.0

    async def closed(self, numbers: Sequence[int], users: int, on_outcome: OnOutcome) -> list[RequestOutcome]:
        """Send the prompts with these numbers from ``users`` users, each of whom waits for the last answer."""
        waiting = iter(numbers)

        async def user(session: aiohttp.ClientSession, outcomes: list[RequestOutcome]) -> None:
            for number in waiting:
                outcomes.append(await self._send(session, number))
                on_outcome(outcomes[-1])

        return await self._run(lambda session, outcomes: [user(session, outcomes) for _ in range(users)])

    async def open(self, numbers: Sequence[int], rate: float, seed: int, on_outcome: OnOutcome) -> list[RequestOutcome]:
        """Send them at random times, ``rate`` a second; the same seed gives the same times."""

        async def request(
            session: aiohttp.ClientSession, outcomes: list[RequestOutcome], number: int, moment: float
        ) -> None:
            await asyncio.sleep(moment)
            outcomes.append(await self._send(session, number))
            on_outcome(outcomes[-1])

        moments = list(zip(numbers, arrivals(rate, seed), strict=False))
        return await self._run(lambda session, outcomes: [request(session, outcomes, *each) for each in moments])

    async def _run(
        self, start: Callable[[aiohttp.ClientSession, list[RequestOutcome]], list[Awaitable[None]]]
    ) -> list[RequestOutcome]:
        outcomes: list[RequestOutcome] = []
        headers = {"Authorization": f"Bearer {self.endpoint.key}"}
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        # Each request has its own connection: llama.cpp's server closes one after a streamed answer, unannounced.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(
            headers=headers, timeout=timeout, connector=connector, read_bufsize=_LINE_BYTES
        ) as session:
            self._began = time.perf_counter()
            await asyncio.gather(*start(session, outcomes))
        return sorted(outcomes, key=lambda one: one.number)

    async def _send(self, session: aiohttp.ClientSession, number: int) -> RequestOutcome:
        outcome = RequestOutcome(number, self._now())
        try:
            async with session.post(f"{self.endpoint.url}/chat/completions", json=self._body(number)) as response:
                if response.status == 200:
                    await self._read(response, outcome)
                else:
                    await response.read()
                    outcome.error = f"HTTP {response.status}"
        except TimeoutError:
            outcome.error = "timeout"
        except aiohttp.ClientError:
            outcome.error = "stream cut" if outcome.chunks else "connection"
        outcome.ended = self._now()
        return outcome

    def _body(self, number: int) -> dict[str, Any]:
        body = {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": self._prompts[number % len(self._prompts)]}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return body if self.endpoint.method is None else body | {"speculation": {"method": self.endpoint.method}}

    async def _read(self, response: aiohttp.ClientResponse, outcome: RequestOutcome) -> None:
        """Read the events of an answer into ``outcome``."""
        async for line in response.content:
            if not line.startswith(b"data:") or (event := line[5:].strip()) == b"[DONE]":
                continue
            chunk = json.loads(event)
            if "error" in chunk:
                outcome.error = f"stream: {_type_of(chunk['error'])}"
                return
            if text := _text_of(chunk):
                outcome.chunks.append(self._now())
                outcome.text += text
            if usage := chunk.get("usage"):
                outcome.tokens = usage["completion_tokens"]
                outcome.tau = (usage.get("speculation") or {}).get("tau")
        if not outcome.tokens:
            outcome.error = "stream cut" if outcome.chunks else "no answer"

    def _now(self) -> float:
        return time.perf_counter() - self._began


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Arrival times of a Poisson process, in seconds."""
    rng = random.Random(seed)
    arrival = 0.0
    while True:
        arrival += rng.expovariate(rate)
        yield arrival


def _type_of(error: Any) -> str:
    """The error's type in OpenAI's format; 'error' where another service sends another format."""
    return str((error.get("type") if isinstance(error, dict) else None) or "error")


def _text_of(chunk: dict[str, Any]) -> str:
    choices = chunk.get("choices")
    return (choices[0]["delta"].get("content") or "") if choices else ""
