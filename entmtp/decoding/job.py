"""Life of a request in an engine, from its arrival to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from entmtp.decoding.outputs import Completion, RequestOutput, check_stop
from entmtp.decoding.request import Request, RunningRequest
from entmtp.decoding.sampling import Sampler
from entmtp.decoding.text import TextStream


@dataclass
class Job:
    """A request that waits for a slot, whose prompt is being read, or that decodes.

    Attributes:
        text_stream: None if the engine has no tokenizer.
        arrival: time of arrival in seconds, by ``time.perf_counter``.
        slot: -1 while it waits.
        prefilled: prompt tokens that are in the cache.
        running: its decoding state; None until its prompt is read.
    """

    request: Request
    sampler: Sampler
    text_stream: TextStream | None
    arrival: float
    completion: Completion = field(default_factory=Completion)
    slot: int = -1
    prefilled: int = 0
    running: RunningRequest | None = None

    def move_to_slot(self, slot: int) -> None:
        """Note that its state was moved to another slot."""
        self.slot = slot
        if self.running is not None:
            self.running.slot = slot

    @property
    def outstanding_tokens(self) -> int:
        """Upper bound of the prompt and answer tokens that it still needs."""
        request = self.request
        return len(request.prompt) - self.prefilled + request.params.max_tokens - len(self.completion.tokens)

    def make_output(self, running: RunningRequest) -> RequestOutput:
        """Add a step's tokens to the completion, with their text and log-probabilities, up to the answer's end."""
        done, params = self.completion, self.request.params
        begin = len(done.tokens)
        count, reason = check_stop(running.tokens[begin:], params.max_tokens - begin, self.sampler.stop_ids)
        new = running.tokens[begin : begin + count]
        text = ""
        if self.text_stream is not None:
            for at, token in enumerate(new):
                text += "" if token in self.sampler.stop_ids else self.text_stream.push(token)
                if self.text_stream.stopped:
                    new, reason = new[: at + 1], "stop"
                    break
            text += self.text_stream.finish() if reason else ""
        logprobs = running.logprobs[begin : begin + len(new)]
        done.tokens += new
        done.text += text
        done.logprobs += logprobs
        done.steps = running.steps
        done.seconds = time.perf_counter() - self.arrival
        done.first_token_seconds = done.first_token_seconds or done.seconds
        return RequestOutput(self.request.id, new, text, logprobs, reason, stats=done.stats if reason else None)
