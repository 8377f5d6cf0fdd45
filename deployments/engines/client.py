"""From a request that is well-formed to what the engines answer."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from deployments.engines.admission import Admission
from deployments.engines.catalogue import Catalogue
from deployments.engines.deaths import NO_RETRY, RETRIES
from deployments.engines.failover import relayed
from deployments.engines.merge_streams import merged
from deployments.engines.tokenizing import Encoder, too_long
from deployments.engines.tracing import Tracing
from deployments.protocol.errors import ApiError, context_error, full_error, invalid, too_many
from deployments.protocol.messages import Call, Delta, Failure
from deployments.protocol.schema import CompletionRequest, Generation, Message
from deployments.settings import AppArgs, EngineArgs
from entmtp.decoding.detokenizer import Detokenizer
from entmtp.models.loading.end_of_turn import end_of_turn_ids, ending_turns
from entmtp.models.loading.load import load_tokenizer, max_positions, vocabulary_size

_TOKENIZER_THREADS = 2
_STATUS = {"invalid": 400, "full": 429, "failed": 500, "fatal": 500, "dead": 503}


@dataclass(frozen=True)
class Work:
    """A request as its engine sees it: one call for each answer; the answers to one prompt stand together."""

    engine: EngineArgs
    calls: list[Call]

    @property
    def answers(self) -> int:
        """Choices, over all prompts."""
        return len(self.calls)

    @property
    def prompt_tokens(self) -> int:
        """Each prompt once, whatever the number of its answers."""
        return sum(len(call.prompt) for call in self.calls if call.number == 0)

    @property
    def tokens(self) -> int:
        """Tokens that it may take to read and write, at most."""
        return self.prompt_tokens + sum(call.params.max_tokens for call in self.calls)


class Service:
    """The engines, seen from an ingress."""

    def __init__(self, args: AppArgs, handles: Mapping[str, Any], limiter: Any | None) -> None:
        self.args = args
        self.catalogue = Catalogue(args.engines)
        self.tracing = Tracing(args.trace_share)
        self._handles = handles
        self._limiter = limiter
        sources = {one.model for one in args.engines}
        threads = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self._encoders = {source: Encoder(load_tokenizer(source), threads) for source in sources}
        self._positions = {source: max_positions(source) for source in sources}
        self._turn_ends = {
            source: end_of_turn_ids(encoder.tokenizer, vocabulary_size(source))
            for source, encoder in self._encoders.items()
        }

    def detokenizer(self, engine: EngineArgs) -> Detokenizer:
        """The texts of the engine's tokens."""
        return self._encoders[engine.model].detokenizer

    def context(self, engine: EngineArgs) -> int:
        """Tokens of prompt and answer together."""
        return min(engine.engine.context, self._positions[engine.model])

    async def encode(self, engine: EngineArgs, prompt: str) -> list[int]:
        """Token ids of a text.

        Raises:
            ApiError: it can't fit into the context.
        """
        return await self._encoders[engine.model].text(prompt, self.context(engine))

    async def encode_prompts(self, engine: EngineArgs, body: CompletionRequest) -> list[list[int]]:
        """Token ids of each prompt.

        Raises:
            ApiError: there are none or too many, or one can't fit into the context.
        """
        prompts = body.prompts()
        self._check_choices(body, len(prompts))
        return [await self.encode(engine, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]

    async def encode_chat(self, engine: EngineArgs, messages: Sequence[Message]) -> list[int]:
        """Token ids of a chat as the model's template writes it.

        Raises:
            ApiError: the model has no template, it refuses the messages, or they can't fit into the context.
        """
        encoder = self._encoders[engine.model]
        if encoder.tokenizer.chat_template is None:
            raise invalid(f"model: '{engine.model_name}' has no chat template; use /v1/completions", "model")
        return await encoder.chat(messages, self.context(engine))

    async def prepare(
        self,
        id: str,
        key: str,
        engine: EngineArgs,
        body: Generation,
        prompts: Sequence[Sequence[int]],
        default_tokens: int | None,
    ) -> Work:
        """Checks what is asked for against the limits.

        Raises:
            ApiError: it is too long, too much, or too soon.
        """
        n = body.n or 1
        self._check_choices(body, len(prompts))
        seed = secrets.randbelow(2**63)
        calls = []
        for number, prompt in enumerate(prompts):
            params = body.sampling(self._room(engine, prompt, body), default_tokens)
            if params.seed is None:
                params = params.model_copy(update={"seed": seed})
            if not body.continues_text:
                params = ending_turns(params, self._turn_ends[engine.model])
            max_nodes = None if body.speculation is None else body.speculation.max_nodes
            # Two clients may have chosen the same id.
            unique = f"{id}.{secrets.token_hex(4)}.{number}"
            salt = "" if self.args.shared_prefixes else key
            calls += [
                Call(f"{unique}.{at}", list(prompt), params, at, max_nodes, number, salt, body.continues_text)
                for at in range(n)
            ]
        work = Work(engine, calls)
        await self._take(key, work.tokens)
        return work

    async def run(self, work: Work, retries: int = RETRIES) -> AsyncGenerator[Delta]:
        """Tokens of each step of each answer, as they come.

        Args:
            retries: processes that may still die of the request before it is given up.

        Raises:
            ApiError: an engine refuses or fails.
        """
        handle, attempts = self._handles[work.engine.name], self.args.limits.attempts
        admission = Admission(work.engine.engine.slots)
        streams = [
            admission.answered(number, partial(relayed, handle, call, attempts, retries))
            for number, call in enumerate(work.calls)
        ]
        async with aclosing(merged(streams)) as stream:
            async for number, item in stream:
                if isinstance(item, Failure):
                    raise self._error(item)
                yield replace(item, index=number)

    def _check_choices(self, body: Generation, prompts: int) -> None:
        n, most = body.n or 1, self.args.limits.choices
        if prompts > most:
            raise invalid(
                f"prompt: {prompts} prompts are more than {most}, the most of one request; send fewer", "prompt"
            )
        if n * prompts > most:
            of_each = "answers" if prompts == 1 else f"answers to each of {prompts} prompts"
            raise invalid(f"n: {n} {of_each} are more than {most}, the most of one request; ask for fewer", "n")

    def _room(self, engine: EngineArgs, prompt: Sequence[int], body: Generation) -> int:
        """Tokens of the context that the prompt leaves."""
        context, asked, field = self.context(engine), body.asked_tokens() or 1, body.prompt_field
        if not prompt:
            raise invalid(f"{field}: it has no tokens; give some text", field)
        room = context - len(prompt)
        if room < 1:
            raise too_long(context, str(len(prompt)), field)
        if asked > room:
            needed = f"you requested {len(prompt) + asked} tokens ({len(prompt)} in the {field}, {asked} new ones)"
            fix = f"reduce {body.tokens_field} to {room}, or the length of the {field}"
            raise context_error(context, needed, fix, body.tokens_field)
        return room

    async def _take(self, key: str, tokens: int) -> None:
        if self._limiter is None:
            return
        wait = await self._limiter.take.remote(key, tokens)
        if wait:
            raise too_many("this key has asked for as much as it may in a minute", math.ceil(wait))

    def _error(self, failure: Failure) -> ApiError:
        if failure.kind == "full":
            return full_error(self.args.limits.retry_after_s)
        if failure.kind == "invalid":
            return invalid(failure.message, failure.message.partition(":")[0])
        headers = NO_RETRY if failure.kind in {"failed", "fatal"} else None
        return ApiError(_STATUS[failure.kind], failure.message, headers=headers)
