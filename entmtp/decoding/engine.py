"""The loop around the step: requests join and leave between steps, and all that run share each of them."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.faults import NotNumbersError, description, is_out_of_memory
from entmtp.decoding.job import Job
from entmtp.decoding.outputs import Completion, EngineStatistics, FinishReason, RequestOutput, logprobs_of
from entmtp.decoding.request import InvalidRequestError, Request, RunningRequest, check_request
from entmtp.decoding.sampling import Sampler
from entmtp.decoding.slots import Slots
from entmtp.decoding.state import DecodingState
from entmtp.decoding.step import decode_step
from entmtp.decoding.step_retry import StepRetry
from entmtp.decoding.text import TextStream
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.base import Policy
from entmtp.policies.signals import Ema, SignalTracker
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.trees.bank import MAX_NODES

_log = logging.getLogger(__name__)
_WINDOW = 64


class EngineFullError(EntMTPError):
    """As many requests wait as may; try again later."""


class Engine:
    """Decodes requests with one method (heads and policy) on one device; not safe to call from several threads.

    All memory for ``settings.slots`` requests of ``settings.context`` tokens is allocated at construction. Without
    settings one request runs at a time, in memory that grows with the longest.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: DraftHeads | None,
        policy: Policy,
        settings: EngineSettings | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.backbone = backbone
        self.heads = heads
        self.policy = policy
        self.settings = settings or EngineSettings(slots=1, context=backbone.max_context, prefix_reuse=False)
        self.detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self._grows = settings is None
        self._retry = StepRetry()
        self._steps = self._tokens = 0
        self._gained, self._busy = Ema(_WINDOW), Ema(_WINDOW)
        self._waiting: deque[Job] = deque()
        self._jobs: list[Job] = []
        self._state: DecodingState | None = None
        self._slots: Slots | None = None
        if not self._grows:
            self._allocate(_rows(min(self.settings.context, backbone.max_context)))

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        """Requests that have none yet."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._jobs and not self._waiting

    @property
    def statistics(self) -> EngineStatistics:
        """How it fares now."""
        seconds = self._busy.value
        return EngineStatistics(
            running=self.running,
            waiting=self.waiting,
            outstanding_tokens=sum(job.outstanding for job in [*self._jobs, *self._waiting]),
            cache_tokens=0 if self._slots is None else self._slots.tokens,
            cache_capacity=0 if self._state is None else self.settings.slots * self._state.capacity,
            steps=self._steps,
            tokens=self._tokens,
            goodput=self._gained.value / seconds / 1e3 if seconds else 0.0,
            predicted_goodput=self.policy.predicted_goodput,
        )

    def generate(self, prompt: Sequence[int], max_new_tokens: int) -> Completion:
        """Completes ``prompt`` (token ids) greedily, to an end-of-text token or ``max_new_tokens``."""
        if max_new_tokens < 1:
            raise EntMTPError(f"max_new_tokens: {max_new_tokens} is not accepted; ask for at least 1")
        completion = Completion()
        for _ in self.stream(prompt, SamplingParams(temperature=0.0, max_tokens=max_new_tokens), completion):
            pass
        return completion

    def stream(
        self, prompt: Sequence[int], params: SamplingParams, completion: Completion, continues_text: bool = False
    ) -> Iterator[RequestOutput]:
        """Completes ``prompt``, alone in the engine: yields what each step brings and fills in ``completion``.

        Raises:
            EntMTPError: as :meth:`submit`.
        """
        self.submit(Request("stream", prompt, params, continues_text=continues_text), completion)
        try:
            while not self.idle:
                for output in self.step():
                    if output.completion is completion:
                        yield output
        finally:
            self.cancel("stream")
        if completion.error:
            raise EntMTPError(completion.error)

    def submit(self, request: Request, completion: Completion | None = None) -> Completion:
        """Queues a request; what comes of it is filled into the completion.

        Raises:
            InvalidRequestError: if it can't be served: its prompt is empty, it and its answer exceed the context, a
                parameter does not fit the model.
            EngineFullError: if too many wait already.
        """
        self.check(request)
        if len(self._waiting) >= self.settings.max_waiting + self.settings.slots - len(self._jobs):
            raise EngineFullError(f"engine: {len(self._waiting)} requests wait already; try again later")
        params = request.params
        eos = frozenset() if params.ignore_eos else self.backbone.eos_token_ids
        sampler = Sampler(params, eos | frozenset(params.stop_token_ids), request.number, request.prompt_number)
        job = Job(request, sampler, self._text(request), time.perf_counter(), completion or Completion())
        self._waiting.append(job)
        return job.completion

    def check(self, request: Request) -> None:
        """Raises InvalidRequestError as :meth:`submit`; may be called from any thread."""
        check_request(request, self.backbone.vocab_size, min(self.backbone.max_context, self.settings.context))
        if request.params.stop and self.detokenizer is None:
            raise InvalidRequestError("stop: this engine has no tokenizer to find texts with; use stop_token_ids")

    def _text(self, request: Request) -> TextStream | None:
        if self.detokenizer is None:
            return None
        prompt = request.prompt if request.continues_text else ()
        return TextStream(self.detokenizer, request.params.stop, request.params.min_tokens, prompt)

    def change(self, policy: Policy, settings: EngineSettings) -> None:
        """Goes on with another policy and other limits; requests that run keep their text and forget their history.

        Raises:
            EntMTPError: if the settings would need other memory.
        """
        for name in ("slots", "context"):
            if (new := getattr(settings, name)) != (old := getattr(self.settings, name)):
                raise EntMTPError(f"{name}: {new} needs other memory than {old}; start the engine anew for that")
        if self._slots is not None:
            self._slots.reuse = settings.prefix_reuse
        self.policy.close()
        self.policy, self.settings = policy, settings
        for job in self._jobs:
            if job.running is not None:
                job.running.tracker = SignalTracker(policy.entropy_window)
                job.running.policy_state = policy.start()

    def close(self) -> None:
        """Keeps what the policy has learnt for the next run; decoding may go on."""
        self.policy.close()

    @property
    def captures_steps(self) -> bool:
        """Whether its steps become CUDA graphs, so that the first ones of a kind take longer than they will again."""
        return self._state is not None and self._state.graphs.active

    @property
    def texts(self) -> list[tuple[str, list[int]]]:
        """Salt and tokens of what lies in the slots: a prompt that begins as one of them is read faster."""
        return [] if self._slots is None else self._slots.texts

    def cancel(self, id: str) -> None:
        """Forgets a request, if it is there; its slot is free at once."""
        for job in [*self._waiting, *self._jobs]:
            if job.request.id == id:
                self._finish(job, "cancelled")

    def step(self) -> list[RequestOutput]:
        """Lets waiting requests in, reads prompts, and moves all that run on by one step.

        What goes wrong with one request ends that one with an error and touches no other. What can't be told from a
        fault of the model or the device is raised: nothing can be served any more then.
        """
        failed = self._admit() + self._read_prompts()
        running = [job for job in self._jobs if job.running is not None]
        return failed + (self._decode(running) if running else [])

    def _allocate(self, capacity: int) -> None:
        self._state = self._slots = None  # their memory first
        self._state = DecodingState(self.backbone, self.heads, self.settings.slots, capacity)
        self._slots = Slots(self._state.cache, self.settings.prefix_reuse)

    def _admit(self) -> list[RequestOutput]:
        """First come, first served."""
        failed = []
        while self._waiting and self._has_room:
            job = self._waiting[0]
            try:
                self._enter(job)
            except Exception as error:
                failed.append(self._fail(job, error, "finding room for it"))
        return failed

    @property
    def _has_room(self) -> bool:
        return not self._jobs if self._grows else self._slots is not None and self._slots.free > 0

    def _enter(self, job: Job) -> None:
        request = job.request
        if self._grows:
            self._make_room(len(request.prompt) + request.params.max_tokens)
        job.slot, job.read = self._memory()[1].take(request.prompt, request.cache_salt)
        job.completion.waiting_seconds = time.perf_counter() - job.arrived
        job.completion.reused_tokens = job.read
        self._jobs.append(self._waiting.popleft())

    def _make_room(self, tokens: int) -> None:
        if self._state is None or self._state.capacity < _rows(tokens):
            # Powers of two, so that it seldom has to grow.
            self._allocate(1 << (_rows(tokens) - 1).bit_length())

    def _read_prompts(self) -> list[RequestOutput]:
        """Reads as many prompt tokens as may come between two steps, of the oldest request first."""
        budget = self.settings.prefill_tokens
        failed: list[RequestOutput] = []
        for job in [job for job in self._jobs if job.running is None]:
            part = job.request.prompt[job.read : job.read + budget]
            if not part:
                break
            budget -= len(part)
            try:
                self._read(job, part)
            except Exception as error:
                failed.append(self._fail(job, error, "reading its prompt"))
                self._check_alive(error)
                continue
            if job.running is not None and math.isnan(job.running.entropy):
                failed.append(self._fail(job, NotNumbersError(), "reading its prompt"))
        return failed

    def _read(self, job: Job, part: Sequence[int]) -> None:
        state, slots = self._memory()
        state.read(job.slot, part)
        slots.write(job.slot, part)
        job.read += len(part)
        if job.read == len(job.request.prompt):
            job.running = self._begun(job, state)

    def _begun(self, job: Job, state: DecodingState) -> RunningRequest:
        job.sampler.read(job.request.prompt, self.backbone.vocab_size, self.backbone.device)
        logits = state.logits(job.slot)
        root, uncertainty = state.begin(job.slot, logits, job.sampler)
        running = self._running(job.slot, root, uncertainty)
        running.sampler, running.max_nodes = job.sampler, job.request.max_nodes
        if (count := job.request.params.logprobs) is not None:
            running.logprobs += logprobs_of(logits[None], [root], count)
        job.completion.prefill_seconds = time.perf_counter() - job.arrived - job.completion.waiting_seconds
        return running

    def _running(self, slot: int, root: int, uncertainty: float) -> RunningRequest:
        tracker = SignalTracker(self.policy.entropy_window)
        return RunningRequest(slot, tracker, self.policy.start(), root, uncertainty)

    def _memory(self) -> tuple[DecodingState, Slots]:
        assert self._state is not None
        assert self._slots is not None
        return self._state, self._slots

    def _decode(self, jobs: list[Job]) -> list[RequestOutput]:
        slots = self._memory()[1]
        outputs = self._compact_slots(jobs)
        jobs = sorted((job for job in jobs if job in self._jobs), key=lambda job: job.slot)
        if not jobs:
            return outputs
        requests = [job.running for job in jobs if job.running is not None]
        before = [len(request.tokens) for request in requests]
        began = time.perf_counter()
        self._retry.step(self._memory()[0], self.policy, requests)
        self._steps += 1
        gained = sum(len(request.tokens) for request in requests) - sum(before)
        self._gained.update(gained)
        self._busy.update(time.perf_counter() - began)
        self._tokens += gained
        for job, request, begin in zip(jobs, requests, before, strict=True):
            slots.write(job.slot, request.tokens[begin:])
            outputs.append(self._outcome(job, request))
        for request in requests:
            self._check_alive(request.failure)
        return outputs

    def _compact_slots(self, running: Sequence[Job]) -> list[RequestOutput]:
        """Moves the ``running`` into the first slots.

        A step reads slots that follow one another where they lie, and needs graphs by their number alone.
        """
        state, slots = self._memory()
        for one, other in slots.to_front([job.slot for job in running]):
            try:
                state.swap(one, other)
            except Exception as error:
                if is_out_of_memory(error):  # before anything has moved, and it is for speed only
                    return []
                ended = [self._fail(job, error, "moving it") for job in [*self._jobs] if job.slot in (one, other)]
                slots.spoil(one)
                slots.spoil(other)
                return ended
            slots.swap(one, other)
            for job in self._jobs:
                job.move({one: other, other: one}.get(job.slot, job.slot))
        return []

    def _outcome(self, job: Job, request: RunningRequest) -> RequestOutput:
        if request.failure is not None:
            return self._fail(job, request.failure, "a step of it")
        if math.isnan(request.entropy):
            return self._fail(job, NotNumbersError(), "a step of it")
        try:
            output = job.take_in(request)
        except Exception as error:
            return self._fail(job, error, "making its text")
        if output.finish_reason:
            self._finish(job, output.finish_reason)
        return output

    def _finish(self, job: Job, reason: FinishReason, error: str | None = None) -> RequestOutput:
        job.completion.finish_reason, job.completion.error = reason, error
        if job in self._jobs:
            self._jobs.remove(job)
            self._memory()[1].release(job.slot, dirty=error is not None or not self._is_finite(job))
        else:
            self._waiting.remove(job)
        return RequestOutput(job.request.id, [], "", [], reason, job.completion)

    def _is_finite(self, job: Job) -> bool:
        """Whether all rows of its slot are numbers, as far as that can be told."""
        if job.running is not None:
            return job.running.finite
        try:
            return job.read == job.completion.reused_tokens or self._memory()[0].is_finite(job.slot)
        except RuntimeError:
            return False

    def _fail(self, job: Job, error: Exception, doing: str) -> RequestOutput:
        _log.error("request %s: %s failed", job.request.id, doing, exc_info=error)
        return self._finish(job, "error", description(error, doing))

    def _check_alive(self, error: Exception | None) -> None:
        """Raises the error that a request has ended with, if a trivial text can't be written after it either.

        Then the fault is not the request's: model, policy or device are broken. Too little memory may come back.
        """
        if error is None or is_out_of_memory(error):
            return
        try:
            self._probe()
        except Exception as broken:
            if not is_out_of_memory(broken):
                raise error from broken

    def _probe(self) -> None:
        """Writes a trivial text."""
        state, slots = self._memory()
        slot, _ = slots.take([0])
        try:
            decode_step(state, self.policy, [self._running(slot, *state.prefill(slot, [0]))])
        finally:
            slots.release(slot, dirty=True)


def _rows(tokens: int) -> int:
    """Of the cache, for so many tokens: the last step may overshoot by a whole tree."""
    return tokens + MAX_NODES + 1
