"""Requests to an OpenAI-compatible endpoint as users send them, and when what came back.

A *closed loop* has so many users, each of whom asks again when answered: it finds the throughput. An *open loop* sends
at random moments (a Poisson process) whatever has been answered: it finds what users wait for, overload included.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI

from entmtp.errors import EntMTPError

Told = Callable[["Outcome"], None]


@dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    Attributes:
        name: in tables.
        url: with the API's version, such as http://127.0.0.1:8000/v1.
        method: of the extension ``speculation``; None leaves it to the service, and suits any other service.
    """

    name: str
    url: str
    model: str
    method: str | None = None
    key: str = "none"

    @classmethod
    def parse(cls, text: str, model: str, key: str) -> Endpoint:
        """NAME=URL or NAME=URL#METHOD.

        Raises:
            EntMTPError: it is neither.
        """
        name, equals, rest = text.partition("=")
        url, _, method = rest.partition("#")
        if not name or not equals or not url.startswith(("http://", "https://")):
            raise EntMTPError(f"endpoint: '{text}' is not NAME=URL or NAME=URL#METHOD with an http address; give one")
        return cls(name, url, model, method or None, key)


@dataclass
class Outcome:
    """One request, in seconds from the begin of the run.

    Attributes:
        chunks: when something came.
        tokens: new ones, by the service's own count.
        tau: tokens per step, where the service tells it.
        error: its kind, if it failed.
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
        """Until something came."""
        return self.chunks[0] - self.began

    @property
    def tpot(self) -> float | None:
        """Per token behind the first; None where there is no other."""
        return (self.chunks[-1] - self.chunks[0]) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def itl(self) -> list[float]:
        """Between the parts that came: several tokens may come at once."""
        return [after - before for before, after in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def seconds(self) -> float:
        """From begin to end."""
        return self.ended - self.began


class Traffic:
    """Sends prompts to one endpoint, greedily."""

    def __init__(self, endpoint: Endpoint, prompts: Sequence[str], max_tokens: int, timeout: float) -> None:
        self.endpoint = endpoint
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._timeout = timeout
        self._began = 0.0

    async def closed(self, numbers: Sequence[int], users: int, told: Told) -> list[Outcome]:
        """``users`` ask for the prompts with these numbers, each the next when answered."""
        waiting = iter(numbers)

        async def user(client: AsyncOpenAI, outcomes: list[Outcome]) -> None:
            for number in waiting:
                outcomes.append(await self._ask(client, number))
                told(outcomes[-1])

        return await self._run(lambda client, outcomes: [user(client, outcomes) for _ in range(users)])

    async def open(self, numbers: Sequence[int], rate: float, seed: int, told: Told) -> list[Outcome]:
        """Asks for them at random moments, ``rate`` a second; the same seed means the same moments."""

        async def request(client: AsyncOpenAI, outcomes: list[Outcome], number: int, moment: float) -> None:
            await asyncio.sleep(moment)
            outcomes.append(await self._ask(client, number))
            told(outcomes[-1])

        moments = list(zip(numbers, arrivals(rate, seed), strict=False))
        return await self._run(lambda client, outcomes: [request(client, outcomes, *each) for each in moments])

    async def _run(self, begun: Callable[[AsyncOpenAI, list[Outcome]], list[Awaitable[None]]]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        # What a client library retries would be counted as one slow request.
        async with AsyncOpenAI(
            base_url=self.endpoint.url, api_key=self.endpoint.key, max_retries=0, timeout=self._timeout
        ) as client:
            self._began = time.perf_counter()
            await asyncio.gather(*begun(client, outcomes))
        return sorted(outcomes, key=lambda one: one.number)

    async def _ask(self, client: AsyncOpenAI, number: int) -> Outcome:
        outcome = Outcome(number, self._now())
        extra: dict[str, Any] = {}
        if self.endpoint.method is not None:
            extra["speculation"] = {"method": self.endpoint.method}
        try:
            stream = await client.chat.completions.create(
                model=self.endpoint.model,
                messages=[{"role": "user", "content": self._prompts[number % len(self._prompts)]}],
                max_tokens=self._max_tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=extra,
            )
            async for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    outcome.chunks.append(self._now())
                    outcome.text += chunk.choices[0].delta.content
                if chunk.usage is not None:
                    outcome.tokens = chunk.usage.completion_tokens
                    outcome.tau = (getattr(chunk.usage, "speculation", None) or {}).get("tau")
            if not outcome.tokens:
                outcome.error = "stream cut" if outcome.chunks else "no answer"
        except APIError as error:
            outcome.error = kind_of(error)
        outcome.ended = self._now()
        return outcome

    def _now(self) -> float:
        return time.perf_counter() - self._began


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Moments of a Poisson process, in seconds."""
    rng = random.Random(seed)
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def kind_of(error: APIError) -> str:
    """In a word or two: what a table of errors counts."""
    if isinstance(error, APIStatusError):
        return f"HTTP {error.status_code}"
    if isinstance(error, APITimeoutError):
        return "timeout"
    if isinstance(error, APIConnectionError):
        return "connection"
    return f"stream: {error.type or 'error'}"
