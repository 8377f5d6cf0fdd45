"""Continuous batching: requests join and leave between steps, and all running ones share each step."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.faults import NonFiniteLogitsError, description, is_out_of_memory
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
    """Raised if the queue of waiting requests is full; the request can be tried again later."""


class Engine:
    """Decodes requests with one method (heads and policy) on one device; not safe to call from several threads.

    All memory for ``settings.slots`` requests of ``settings.context`` tokens is allocated at construction. Without
    settings one request runs at a time, and memory is allocated anew for a request that needs more than any before.
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
        self._allocates_on_demand = settings is None
        self._retry = StepRetry()
        self._steps = self._tokens = 0
        self._gained, self._busy = Ema(_WINDOW), Ema(_WINDOW)
        self._waiting: deque[Job] = deque()
        self._jobs: list[Job] = []
        self._state: DecodingState | None = None
        self._slots: Slots | None = None
        if not self._allocates_on_demand:
            self._allocate(_cache_rows(min(self.settings.context, backbone.max_context)))

    @property
    def running(self) -> int:
        """Number of requests that have a slot."""
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits."""
        return not self._jobs and not self._waiting

    @property
    def statistics(self) -> EngineStatistics:
        """Current state of the engine."""
        seconds = self._busy.value
        return EngineStatistics(
            running=self.running,
            waiting=self.waiting,
            outstanding_tokens=sum(job.outstanding_tokens for job in [*self._jobs, *self._waiting]),
            cache_tokens=0 if self._slots is None else self._slots.tokens,
            cache_capacity=0 if self._state is None else self.settings.slots * self._state.capacity,
            steps=self._steps,
            tokens=self._tokens,
            goodput=self._gained.value / seconds / 1e3 if seconds else 0.0,
            predicted_goodput=self.policy.predicted_goodput,
        )

    def generate(self, prompt: Sequence[int], max_new_tokens: int) -> Completion:
        """Complete ``prompt`` (token ids) greedily, to an end-of-text token or ``max_new_tokens``."""
        if max_new_tokens < 1:
            raise EntMTPError(f"max_new_tokens: {max_new_tokens} is not accepted; ask for at least 1")
        completion = Completion()
        for _ in self.stream(prompt, SamplingParams(temperature=0.0, max_tokens=max_new_tokens), completion):
            pass
        return completion

    def stream(
        self, prompt: Sequence[int], params: SamplingParams, completion: Completion, continues_text: bool = False
    ) -> Iterator[RequestOutput]:
        """Complete ``prompt``, alone in the engine: yields each step's output and fills in ``completion``.

        Raises:
            EntMTPError: as :meth:`submit`.
        """
        self.submit(Request("stream", prompt, params, continues_text=continues_text), completion)
        try:
            while not self.idle:
                for output in self.step():
                    if output.id == "stream":
                        yield output
        finally:
            self.cancel("stream")
        if completion.error:
            raise EntMTPError(completion.error)

    def submit(self, request: Request, completion: Completion | None = None) -> Completion:
        """Queue a request; steps fill in the returned completion.

        Raises:
            InvalidRequestError: if the prompt is empty, prompt and answer exceed the context, or a parameter does not
                fit the model.
            EngineFullError: if too many requests wait already.
        """
        self.check(request)
        if len(self._waiting) >= self.settings.max_waiting + self.settings.slots - len(self._jobs):
            raise EngineFullError(f"engine: {len(self._waiting)} requests wait already; try again later")
        params = request.params
        eos = frozenset() if params.ignore_eos else self.backbone.eos_token_ids
        sampler = Sampler(params, eos | frozenset(params.stop_token_ids), request.answer_index, request.prompt_index)
        job = Job(request, sampler, self._text_stream(request), time.perf_counter(), completion or Completion())
        self._waiting.append(job)
        return job.completion

    def check(self, request: Request) -> None:
        """Check a request; raises InvalidRequestError as :meth:`submit`. May be called from any thread."""
        check_request(request, self.backbone.vocab_size, min(self.backbone.max_context, self.settings.context))
        if request.params.stop and self.detokenizer is None:
            raise InvalidRequestError("stop: this engine has no tokenizer to find texts with; use stop_token_ids")

    def _text_stream(self, request: Request) -> TextStream | None:
        if self.detokenizer is None:
            return None
        prompt = request.prompt if request.continues_text else ()
        return TextStream(self.detokenizer, request.params.stop, request.params.min_tokens, prompt)

    def reconfigure(self, policy: Policy, settings: EngineSettings) -> None:
        """Continue with another policy and other limits.

        Running requests keep their text; their signals and policy states are reset.

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
        """Save what the policy has learnt for the next run; decoding may go on."""
        self.policy.close()

    @property
    def captures_steps(self) -> bool:
        """Whether steps are captured as CUDA graphs, so that the first ones of a kind take longer than later ones."""
        return self._state is not None and self._state.graphs.active

    @property
    def cached_prefixes(self) -> list[tuple[str, list[int]]]:
        """Salt and tokens of each slot: a prompt that begins like one of them is read faster."""
        return [] if self._slots is None else self._slots.cached_prefixes

    def cancel(self, id: str) -> None:
        """Cancel a request, if it waits or runs; its slot is free at once."""
        for job in [*self._waiting, *self._jobs]:
            if job.request.id == id:
                self._finish(job, "cancelled")

    def step(self) -> list[RequestOutput]:
        """Admit waiting requests, read prompts, and decode one step of all running requests.

        An error of one request ends that request and affects no other. An error that comes from the model or the device
        is raised: the engine can serve nothing more.
        """
        failed = self._admit() + self._prefill()
        running = [job for job in self._jobs if job.running is not None]
        return failed + (self._decode(running) if running else [])

    def _allocate(self, capacity: int) -> None:
        self._state = self._slots = None  # frees their memory first
        self._state = DecodingState(self.backbone, self.heads, self.settings.slots, capacity)
        self._slots = Slots(self._state.cache, self.settings.prefix_reuse)

    def _admit(self) -> list[RequestOutput]:
        """Give free slots to waiting requests, first come, first served."""
        failed = []
        while self._waiting and self._has_room:
            job = self._waiting[0]
            try:
                self._assign_slot(job)
            except Exception as error:
                failed.append(self._fail(job, error, "assigning it a slot"))
        return failed

    @property
    def _has_room(self) -> bool:
        return not self._jobs if self._allocates_on_demand else self._slots is not None and self._slots.free > 0

    def _assign_slot(self, job: Job) -> None:
        request = job.request
        if self._allocates_on_demand:
            self._ensure_capacity(len(request.prompt) + request.params.max_tokens)
        job.slot, job.prefilled = self._state_and_slots()[1].acquire(request.prompt, request.cache_salt)
        job.completion.waiting_seconds = time.perf_counter() - job.arrival
        job.completion.reused_tokens = job.prefilled
        self._jobs.append(self._waiting.popleft())

    def _ensure_capacity(self, tokens: int) -> None:
        if self._state is None or self._state.capacity < _cache_rows(tokens):
            # A power of two, so that it is seldom allocated anew.
            self._allocate(1 << (_cache_rows(tokens) - 1).bit_length())

    def _prefill(self) -> list[RequestOutput]:
        """Read up to ``settings.prefill_tokens`` prompt tokens, those of the oldest request first."""
        budget = self.settings.prefill_tokens
        failed: list[RequestOutput] = []
        for job in [job for job in self._jobs if job.running is None]:
            chunk = job.request.prompt[job.prefilled : job.prefilled + budget]
            if not chunk:
                break
            budget -= len(chunk)
            try:
                self._prefill_chunk(job, chunk)
            except Exception as error:
                failed.append(self._fail(job, error, "reading its prompt"))
                self._check_alive(error)
                continue
            if job.running is not None and math.isnan(job.running.entropy):
                failed.append(self._fail(job, NonFiniteLogitsError(), "reading its prompt"))
        return failed

    def _prefill_chunk(self, job: Job, chunk: Sequence[int]) -> None:
        state, slots = self._state_and_slots()
        state.prefill_chunk(job.slot, chunk)
        slots.append(job.slot, chunk)
        job.prefilled += len(chunk)
        if job.prefilled == len(job.request.prompt):
            job.running = self._start_decoding(job, state)

    def _start_decoding(self, job: Job, state: DecodingState) -> RunningRequest:
        """Choose the first root of a request whose prompt is read."""
        job.sampler.observe_prompt(job.request.prompt, self.backbone.vocab_size, self.backbone.device)
        logits = state.next_logits(job.slot)
        root, root_entropy = state.start(job.slot, logits, job.sampler)
        running = self._new_running(job.slot, root, root_entropy)
        running.sampler, running.max_nodes = job.sampler, job.request.max_nodes
        if (count := job.request.params.logprobs) is not None:
            running.logprobs += logprobs_of(logits[None], [root], count)
        job.completion.prefill_seconds = time.perf_counter() - job.arrival - job.completion.waiting_seconds
        return running

    def _new_running(self, slot: int, root: int, root_entropy: float) -> RunningRequest:
        tracker = SignalTracker(self.policy.entropy_window)
        return RunningRequest(slot, tracker, self.policy.start(), root, root_entropy)

    def _state_and_slots(self) -> tuple[DecodingState, Slots]:
        assert self._state is not None
        assert self._slots is not None
        return self._state, self._slots

    def _decode(self, jobs: list[Job]) -> list[RequestOutput]:
        slots = self._state_and_slots()[1]
        outputs = self._compact_slots(jobs)
        jobs = sorted((job for job in jobs if job in self._jobs), key=lambda job: job.slot)
        if not jobs:
            return outputs
        requests = [job.running for job in jobs if job.running is not None]
        tokens_before = [len(request.tokens) for request in requests]
        started = time.perf_counter()
        self._retry.step(self._state_and_slots()[0], self.policy, requests)
        self._steps += 1
        gained = sum(len(request.tokens) for request in requests) - sum(tokens_before)
        self._gained.update(gained)
        self._busy.update(time.perf_counter() - started)
        self._tokens += gained
        for job, request, begin in zip(jobs, requests, tokens_before, strict=True):
            slots.append(job.slot, request.tokens[begin:])
            outputs.append(self._output_of(job, request))
        for request in requests:
            self._check_alive(request.failure)
        return outputs

    def _compact_slots(self, running: Sequence[Job]) -> list[RequestOutput]:
        """Move the ``running`` requests into the first slots.

        A step reads consecutive slots without a copy, and then needs one graph per number of requests.
        """
        state, slots = self._state_and_slots()
        for one, other in slots.compaction_swaps([job.slot for job in running]):
            try:
                state.swap(one, other)
            except Exception as error:
                if is_out_of_memory(error):  # nothing has moved yet, and compaction is for speed only
                    return []
                failed = [
                    self._fail(job, error, "moving it to another slot")
                    for job in [*self._jobs]
                    if job.slot in (one, other)
                ]
                slots.mark_dirty(one)
                slots.mark_dirty(other)
                return failed
            slots.swap(one, other)
            for job in self._jobs:
                job.move_to_slot({one: other, other: one}.get(job.slot, job.slot))
        return []

    def _output_of(self, job: Job, request: RunningRequest) -> RequestOutput:
        if request.failure is not None:
            return self._fail(job, request.failure, "decoding it")
        if math.isnan(request.entropy):
            return self._fail(job, NonFiniteLogitsError(), "decoding it")
        try:
            output = job.make_output(request)
        except Exception as error:
            return self._fail(job, error, "making its text")
        if output.finish_reason:
            self._finish(job, output.finish_reason)
        return output

    def _finish(self, job: Job, reason: FinishReason, error: str | None = None) -> None:
        job.completion.finish_reason, job.completion.error = reason, error
        if job in self._jobs:
            self._jobs.remove(job)
            self._state_and_slots()[1].release(job.slot, dirty=error is not None or not self._is_finite(job))
        else:
            self._waiting.remove(job)

    def _is_finite(self, job: Job) -> bool:
        """Whether all cache rows of its slot are finite; False if that can't be found out."""
        if job.running is not None:
            return job.running.finite
        try:
            return job.prefilled == job.completion.reused_tokens or self._state_and_slots()[0].is_finite(job.slot)
        except RuntimeError:
            return False

    def _fail(self, job: Job, error: Exception, doing: str) -> RequestOutput:
        _log.error("request %s: %s failed", job.request.id, doing, exc_info=error)
        self._finish(job, "error", text := description(error, doing))
        return RequestOutput(job.request.id, finish_reason="error", error=text, stats=job.completion.stats)

    def _check_alive(self, error: Exception | None) -> None:
        """Raise the error of a failed request if a trivial request fails after it, too.

        Then model, policy or device are broken. Out of memory is not raised, as memory may become free again.
        """
        if error is None or is_out_of_memory(error):
            return
        try:
            self._probe()
        except Exception as broken:
            if not is_out_of_memory(broken):
                raise error from broken

    def _probe(self) -> None:
        """Decode one step of a trivial prompt."""
        state, slots = self._state_and_slots()
        slot, _ = slots.acquire([0])
        try:
            decode_step(state, self.policy, [self._new_running(slot, *state.prefill(slot, [0]))])
        finally:
            slots.release(slot, dirty=True)


def _cache_rows(tokens: int) -> int:
    """Cache rows for a request of ``tokens`` tokens: the last step may overshoot by a whole tree."""
    return tokens + MAX_NODES + 1
