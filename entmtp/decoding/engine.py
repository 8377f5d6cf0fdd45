"""Continuous batching: requests join and leave between steps, and all running ones share each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as GenericSequence
from functools import cached_property

from tokenizers import Tokenizer

from entmtp.decoding.bad_words import word_tokens
from entmtp.decoding.batch import BatchResult
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.decoding.faults import is_out_of_memory
from entmtp.decoding.grammars.compiler import Grammar, GrammarCompiler
from entmtp.decoding.grammars.constraint import Constraint
from entmtp.decoding.grammars.vocabulary import GrammarVocabulary
from entmtp.decoding.outputs import Completion, EngineStatistics, RequestOutput
from entmtp.decoding.request import InvalidRequestError, Request, check_request
from entmtp.decoding.runner import Runner
from entmtp.decoding.sampling import Sampler
from entmtp.decoding.scheduler import Scheduler
from entmtp.decoding.sequence import Sequence, SequenceStatus
from entmtp.decoding.state import DecodingState, NewCache
from entmtp.decoding.text import TextStream
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.base import Policy
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.trees.batch import FILLED_SIZES, filled_size

USUAL_NODES = FILLED_SIZES[-1]
"""Nodes for which an engine always reserves cache rows, so that its policy can be changed: few banks have larger trees.
"""


class Engine:
    """Decodes requests with one method (heads and policy) on one device; not safe to call from several threads.

    The cache for ``settings.slots`` requests of ``context`` tokens is allocated at construction.

    Attributes:
        max_nodes: nodes of the largest tree that its memory has room for.
        context: tokens of each request, prompt and answer together.
        scheduler: decides what a step does.
        runner: does it on the device.
        detokenizer: None without a tokenizer; then answers have no text.
        grammars: compiles constraints; None without a tokenizer.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: DraftHeads | None,
        policy: Policy,
        settings: EngineSettings,
        tokenizer: Tokenizer | None = None,
        new_cache: NewCache | None = None,
        max_nodes: int = USUAL_NODES,
    ) -> None:
        """Allocate the memory, with room for trees of ``max_nodes`` nodes, or of more if ``policy`` has larger ones.

        ``new_cache`` may return a cache that another engine has too. Such engines take turns, and reuse no prefixes.
        """
        self.backbone = backbone
        self.heads = heads
        self._tokenizer = tokenizer
        self.detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self.max_nodes = filled_size(max(max_nodes, policy.max_nodes))
        self.grammars = None if tokenizer is None else GrammarCompiler(_vocabulary(tokenizer, backbone.vocab_size))
        self.context = settings.context_of(backbone.max_context, backbone.device.type)
        # The last step of a text may overshoot by a whole tree.
        cache_rows = self.context + 1 + self.max_nodes
        state = DecodingState(backbone, heads, settings.slots, cache_rows, new_cache)
        self.runner = Runner(state, policy)
        self.scheduler = Scheduler(state, settings)
        self._steps = self._tokens = 0

    @property
    def policy(self) -> Policy:
        """Policy that chooses the trees."""
        return self.runner.policy

    @property
    def settings(self) -> EngineSettings:
        """Capacity and limits."""
        return self.scheduler.settings

    @property
    def running(self) -> int:
        """Number of requests that have a slot."""
        return len(self.scheduler.running)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self.scheduler.waiting)

    @property
    def idle(self) -> bool:
        """Whether no request runs or waits."""
        return not self.scheduler.running and not self.scheduler.waiting

    @property
    def statistics(self) -> EngineStatistics:
        """Current state of the engine."""
        scheduler = self.scheduler
        sequences = [*scheduler.running, *scheduler.waiting]
        return EngineStatistics(
            running=self.running,
            waiting=self.waiting,
            outstanding_tokens=sum(one.outstanding_tokens for one in sequences),
            predicted_tokens=sum(map(scheduler.workload.predicted_tokens, sequences)),
            cache_tokens=scheduler.slots.tokens,
            cache_capacity=self.settings.slots * self.runner.state.capacity,
            steps=self._steps,
            tokens=self._tokens,
            goodput=scheduler.workload.goodput / 1e3,
            predicted_goodput=self.policy.predicted_goodput,
        )

    def generate(self, prompt: GenericSequence[int], max_new_tokens: int) -> Completion:
        """Complete ``prompt`` (token ids) greedily, to an end-of-text token or ``max_new_tokens``."""
        if max_new_tokens < 1:
            raise EntMTPError(f"max_new_tokens: {max_new_tokens} is not accepted; ask for at least 1")
        completion = Completion()
        for _ in self.stream(prompt, SamplingParams(temperature=0.0, max_tokens=max_new_tokens), completion):
            pass
        return completion

    def stream(
        self,
        prompt: GenericSequence[int],
        params: SamplingParams,
        completion: Completion,
        continues_text: bool = False,
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

    def submit(
        self, request: Request, completion: Completion | None = None, grammar: Grammar | None = None
    ) -> Completion:
        """Queue a request; steps fill in the returned completion.

        ``grammar`` is that of a constrained request, if :meth:`compile` has compiled it before.

        Raises:
            InvalidRequestError: if the prompt is empty, prompt and answer exceed the context, or a parameter does not
                fit the model.
            EngineFullError: if it would wait for too long, or too many wait already.
        """
        self.check(request)
        params = request.params
        eos = frozenset() if params.ignore_eos else self.backbone.eos_token_ids
        stop_ids = eos | frozenset(params.stop_token_ids)
        constraint = self._constraint(request, stop_ids, grammar)
        bad_words = word_tokens(self._tokenizer, params.bad_words) if self._tokenizer is not None else []
        sampler = Sampler(params, stop_ids, request.answer_index, request.prompt_index, bad_words, constraint)
        sequence = Sequence(request, sampler, self._text_stream(request), completion or Completion())
        self.scheduler.add(sequence)
        return sequence.completion

    def check(self, request: Request) -> None:
        """Check a request; raises InvalidRequestError as :meth:`submit`. May be called from any thread."""
        check_request(request, self.backbone.vocab_size, self.context, self.backbone.max_context)
        if request.params.stop and self.detokenizer is None:
            raise InvalidRequestError("stop: this engine has no tokenizer to find texts with; use stop_token_ids")
        if request.params.bad_words and self._tokenizer is None:
            raise InvalidRequestError("bad_words: this engine has no tokenizer to read texts with; use logit_bias")
        if (structured := request.params.structured) is not None and self.grammars is None:
            raise InvalidRequestError(f"{structured.field_name}: this engine has no tokenizer; leave it out")

    def compile(self, request: Request) -> Grammar | None:
        """Compile a request's constraint; None if it has none. May be called from any thread.

        Raises:
            InvalidRequestError: if the constraint can't be used.
        """
        structured = request.params.structured
        return None if structured is None or self.grammars is None else self.grammars.compile(structured)

    def _constraint(self, request: Request, stop_ids: frozenset[int], compiled: Grammar | None) -> Constraint | None:
        grammar, params = compiled or self.compile(request), request.params
        if grammar is None or params.structured is None:
            return None
        begins_text = not request.continues_text
        return Constraint(grammar, params.structured.field_name, stop_ids, params.min_tokens, begins_text=begins_text)

    def _text_stream(self, request: Request) -> TextStream | None:
        if self.detokenizer is None:
            return None
        params = request.params
        return TextStream(
            self.detokenizer if params.skip_special_tokens else self._special_detokenizer,
            params.stop,
            params.min_tokens,
            request.prompt if request.continues_text else (),
            include_stop=params.include_stop_str_in_output,
        )

    @cached_property
    def _special_detokenizer(self) -> Detokenizer:
        """Detokenizer for requests that want the text of special tokens."""
        assert self._tokenizer is not None
        return Detokenizer(self._tokenizer, skip_special=False)

    def reconfigure(self, policy: Policy, settings: EngineSettings) -> None:
        """Continue with another policy and other limits.

        Running requests keep their text; their signals and policy states are reset.

        Raises:
            EntMTPError: if the settings or the policy's trees would need other memory.
        """
        if policy.max_nodes > self.max_nodes:
            raise EntMTPError(
                f"policy: its largest tree has {policy.max_nodes} nodes, and cache rows are allocated for"
                f" {self.max_nodes}; start the engine anew with this policy, or give it a bank of smaller trees"
            )
        self.scheduler.set_limits(settings)
        self.policy.close()
        self.runner.policy = policy
        for sequence in self.scheduler.running:
            if sequence.status is SequenceStatus.RUNNING:
                sequence.reset_policy(policy)

    def close(self) -> None:
        """Save what the policy has learnt for the next run; decoding may go on."""
        self.policy.close()

    @property
    def captures_steps(self) -> bool:
        """Whether steps are captured as CUDA graphs, so that the first ones of a kind take longer than later ones."""
        return self.runner.state.graphs.active

    @property
    def cached_prefixes(self) -> list[tuple[str, list[int]]]:
        """Salt and tokens of each slot: a prompt that begins like one of them is read faster."""
        return self.scheduler.slots.cached_prefixes

    def cancel(self, id: str) -> None:
        """Cancel a request, if it waits or runs; its slot is free at once."""
        self.scheduler.cancel(id)

    def step(self) -> list[RequestOutput]:
        """Admit waiting requests, read prompts, and decode one step of all running requests.

        An error of one request ends that request and affects no other. An error that comes from the model or the device
        is raised: the engine can serve nothing more.
        """
        batch = self.scheduler.schedule()
        result = self.runner.run(batch)
        outputs = self.scheduler.update(result)
        self._count(result)
        self._check_alive(result.errors)
        return outputs

    def _count(self, result: BatchResult) -> None:
        """Add a step to the statistics, if any sequence decoded in it."""
        if not result.new_tokens:
            return
        self._steps += 1
        self._tokens += sum(map(len, result.new_tokens.values()))

    def _check_alive(self, errors: GenericSequence[Exception]) -> None:
        """Raise an error of a failed request if a trivial request fails after it, too.

        Then model, policy or device are broken. Out of memory is not raised, as memory may become free again.
        """
        error = next((error for error in errors if not is_out_of_memory(error)), None)
        if error is None:
            return
        try:
            with self.scheduler.spare_slot() as slot:
                self.runner.probe(slot)
        except Exception as broken:
            if not is_out_of_memory(broken):
                raise error from broken


def _vocabulary(tokenizer: Tokenizer, size: int) -> Callable[[], GrammarVocabulary]:
    return lambda: GrammarVocabulary.of(tokenizer, size)
