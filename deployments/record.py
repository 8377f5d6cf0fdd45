"""One structured line in the log for each request; what was asked and answered only where that is wanted."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from deployments.answers import Answer
from deployments.errors import ApiError
from deployments.schema import Generation
from deployments.service import Service, Work
from deployments.tracing import Tracing

_log = logging.getLogger("ray.serve")


@dataclass
class Record:
    """What is known of a request."""

    id: str
    key: str
    user: str | None
    model: str
    tracing: Tracing
    prompt: Any
    began: float = field(default_factory=time.perf_counter)
    first_token_s: float | None = None

    @classmethod
    def begin(cls, id: str, key: str, body: Generation, service: Service) -> Record:
        """Of a request that has just come."""
        user = None if body.user is None else hashlib.sha256(body.user.encode()).hexdigest()[:16]
        prompt = body.model_dump(include={"messages", "prompt"}) if service.args.log_prompts else None
        return cls(id, key, user, body.model, service.tracing, prompt)

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Logs what ends the request before its answer begins."""
        try:
            yield
        except ApiError as error:
            self._write(error.status, {"error": error.message})
            raise
        except Exception as error:  # it is told to the client where all such errors are
            self._write(500, {"error": type(error).__name__})
            raise

    def progress(self) -> None:
        """A part of the answer came."""
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.began

    def end(self, status: int, work: Work, answers: Sequence[Answer]) -> None:
        """The request is over; 499: the client went."""
        facts = {
            "engine": work.engine.name,
            "prompt_tokens": work.prompt_tokens,
            "new_tokens": sum(len(one.tokens) for one in answers),
            "finish_reasons": [one.finish_reason for one in answers],
        }
        self._write(status, facts | ({} if self.prompt is None else {"answers": [one.text for one in answers]}))

    def _write(self, status: int, facts: dict[str, Any]) -> None:
        line: dict[str, Any] = {
            "request_id": self.id,
            "status": status,
            "key": self.key,
            "user": self.user,
            "model": self.model,
            "seconds": round(time.perf_counter() - self.began, 4),
            "first_token_seconds": None if self.first_token_s is None else round(self.first_token_s, 4),
            **facts,
        }
        self.tracing.ended(self.model, line["seconds"], status, line)
        if self.prompt is not None:
            line["prompt"] = self.prompt
        _log.info("request %s", json.dumps({name: value for name, value in line.items() if value is not None}))
