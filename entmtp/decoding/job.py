"""A request from its arrival in an engine to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from entmtp.decoding.outputs import Completion, RequestOutput, check_stop
from entmtp.decoding.request import Request, RunningRequest
from entmtp.decoding.sampling import Sampler
from entmtp.decoding.text import TextStream


@dataclass
class Job:
    """A request that waits for a slot, whose prompt is being read, or that runs.

    Attributes:
        text: None where the engine has no tokenizer.
        arrived: seconds, of ``time.perf_counter``.
        slot: -1 while it waits.
        read: tokens of the prompt that are in the cache.
    """

    request: Request
    sampler: Sampler
    text: TextStream | None
    arrived: float
    completion: Completion = field(default_factory=Completion)
    slot: int = -1
    read: int = 0
    running: RunningRequest | None = None

    def move(self, slot: int) -> None:
        """Notes that it lies in another slot."""
        self.slot = slot
        if self.running is not None:
            self.running.slot = slot

    @property
    def outstanding(self) -> int:
        """Tokens that it may still take."""
        request = self.request
        return len(request.prompt) - self.read + request.params.max_tokens - len(self.completion.tokens)

    def take_in(self, running: RunningRequest) -> RequestOutput:
        """Makes text and log-probabilities of the tokens of a step, up to where the answer ends."""
        done, params = self.completion, self.request.params
        begin = len(done.tokens)
        count, reason = check_stop(running.tokens[begin:], params.max_tokens - begin, self.sampler.stops)
        new = running.tokens[begin : begin + count]
        text = ""
        if self.text is not None:
            for at, token in enumerate(new):
                text += "" if token in self.sampler.stops else self.text.push(token)
                if self.text.stopped:
                    new, reason = new[: at + 1], "stop"
                    break
            text += self.text.finish() if reason else ""
        logprobs = running.logprobs[begin : begin + len(new)]
        done.tokens += new
        done.text += text
        done.logprobs += logprobs
        done.steps = running.steps
        done.seconds = time.perf_counter() - self.arrived
        done.first_token_seconds = done.first_token_seconds or done.seconds
        return RequestOutput(self.request.id, new, text, logprobs, reason, done)
