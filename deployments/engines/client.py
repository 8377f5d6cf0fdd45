"""Client of the engines in an ingress: turns a validated request into engine calls and streams their tokens."""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any

from deployments.engines.admission import Admission
from deployments.engines.catalogue import Catalogue
from deployments.engines.chat_template import ChatTemplate
from deployments.engines.deaths import NO_RETRY, RETRIES
from deployments.engines.failover import stream_with_failover
from deployments.engines.merge_streams import merge_streams
from deployments.engines.tokenizing import EncodedChat, PromptEncoder, prompt_too_long
from deployments.engines.tracing import Tracing
from deployments.protocol.chat_turns import Chat
from deployments.protocol.errors import ApiError, context_error, engine_full_error, invalid_value, rate_limit_error
from deployments.protocol.messages import Failure, prompt_tokens
from deployments.protocol.schema import ChatRequest, CompletionRequest, GenerationRequest
from deployments.settings import AppArgs, EngineArgs
from entmtp import __version__
from entmtp.decoding.detokenizer import REPLACEMENT, Detokenizer
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request
from entmtp.models.loading.end_of_turn import end_of_turn_ids, with_end_of_turn
from entmtp.models.loading.load import load_tokenizer, max_positions, vocabulary_size

_TOKENIZER_THREADS = 2
_FINGERPRINTED = {"model", "heads", "bank", "method", "task", "device", "dtype", "kernels", "weights"}
"""Settings of an engine on which the text of a seed may depend."""

_STATUS = {"invalid": 400, "failed": 500, "fatal": 500, "dead": 503}


class EngineClient:
    """Tokenizes, validates and runs requests on the engines of the application."""

    def __init__(self, args: AppArgs, handles: Mapping[str, Any], limiter: Any | None) -> None:
        self.args = args
        self.catalogue = Catalogue(args.engines)
        self.tracing = Tracing(args.trace_share)
        self._handles = handles
        self._limiter = limiter
        sources = {one.model for one in args.engines}
        threads = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self._encoders = {source: PromptEncoder(load_tokenizer(source), threads) for source in sources}
        self._templates = {
            one.name: ChatTemplate(tokenizer, one)
            for one in args.engines
            if (tokenizer := self._encoders[one.model].tokenizer).chat_template is not None
        }
        self._positions = {source: max_positions(source) for source in sources}
        self._vocabulary_sizes = {source: vocabulary_size(source) for source in sources}
        self._turn_ends = {
            source: end_of_turn_ids(encoder.tokenizer, self._vocabulary_sizes[source])
            for source, encoder in self._encoders.items()
        }

    def detokenizer(self, engine: EngineArgs, body: GenerationRequest) -> Detokenizer:
        """Detokenizer of the engine's model, with special tokens if the body wants their text."""
        encoder = self._encoders[engine.model]
        return encoder.special_detokenizer if body.skip_special_tokens is False else encoder.detokenizer

    def context(self, engine: EngineArgs) -> int:
        """Maximum number of tokens of a prompt and its answer together."""
        return engine.engine.context_of(self._positions[engine.model], engine.device)

    async def encode(self, engine: EngineArgs, prompt: str) -> list[int]:
        """Token ids of a text.

        Raises:
            ApiError: the text can't fit into the context.
        """
        return await self._encoders[engine.model].encode_text(prompt, self.context(engine))

    async def decode(self, engine: EngineArgs, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens included.

        Raises:
            ApiError: an id is not one of the model's.
        """
        size = self._vocabulary_sizes[engine.model]
        if (wrong := next((token for token in tokens if token >= size), None)) is not None:
            raise invalid_value(f"tokens: {wrong} is not one of the model's {size} tokens; give others", "tokens")
        return await self._encoders[engine.model].decode(tokens)

    def fingerprint(self, engine: EngineArgs) -> str:
        """OpenAI's ``system_fingerprint``: equal for answers of the same release, model and method."""
        parts = engine.model_dump_json(include=_FINGERPRINTED)
        return f"fp_{hashlib.sha256(f'{__version__} {parts}'.encode()).hexdigest()[:12]}"

    def echo(self, engine: EngineArgs, body: CompletionRequest, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Text of each prompt, as it was given or of its token ids, without an unfinished character at their end."""
        decode = self.detokenizer(engine, body).decode
        return [
            given if isinstance(given, str) and body.truncate_prompt_tokens is None else decode(ids).rstrip(REPLACEMENT)
            for given, ids in zip(body.prompts(), prompts, strict=True)
        ]

    async def encode_prompts(self, engine: EngineArgs, body: CompletionRequest) -> list[list[int]]:
        """Token ids of each prompt.

        Raises:
            ApiError: there are no prompts or too many, or one can't fit into the context.
        """
        prompts = body.prompts()
        self._check_choices(body, len(prompts))
        context = None if body.truncate_prompt_tokens is not None else self.context(engine)
        encode = self._encoders[engine.model].encode_text
        encoded = [await encode(prompt, context) if isinstance(prompt, str) else prompt for prompt in prompts]
        return [self._truncated(engine, body, prompt) for prompt in encoded]

    def template(self, engine: EngineArgs) -> ChatTemplate:
        """Chat template of the engine's model.

        Raises:
            ApiError: the model has none.
        """
        if (template := self._templates.get(engine.name)) is None:
            raise invalid_value(f"model: '{engine.model_name}' has no chat template; use /v1/completions", "model")
        return template

    async def encode_chat(self, engine: EngineArgs, chat: Chat, body: ChatRequest | None = None) -> EncodedChat:
        """A chat in the model's chat template.

        The body of a chat to answer may ask for the end of a prompt alone.

        Raises:
            ApiError: the model has no template, it refuses the chat, or the chat can't fit into the context.
        """
        render = partial(self.template(engine).render, chat)
        truncates = body is not None and body.truncate_prompt_tokens is not None
        context = None if truncates else self.context(engine)
        prompt = await self._encoders[engine.model].encode_chat(render, context, chat.field)
        return prompt if body is None else prompt._replace(tokens=self._truncated(engine, body, prompt.tokens))

    def _truncated(self, engine: EngineArgs, body: GenerationRequest, prompt: list[int]) -> list[int]:
        """The end of a prompt that ``truncate_prompt_tokens`` leaves."""
        count = body.truncate_prompt_tokens
        if count == -1:
            count = max(1, self.context(engine) - (body.requested_tokens() or 1))
        return prompt if count is None else prompt[max(0, len(prompt) - count) :]

    async def prepare(
        self,
        id: str,
        key: str,
        engine: EngineArgs,
        body: GenerationRequest,
        prompts: Sequence[Sequence[int]],
        default_tokens: int | None,
    ) -> list[Request]:
        """Check a body against the limits and make its requests to the engine: one per answer, ordered by prompt.

        Raises:
            ApiError: too many tokens or answers are requested, or the key's rate limit is reached.
        """
        n = body.answers
        self._check_choices(body, len(prompts))
        seed, arrived = secrets.randbelow(2**63), time.time()
        requests: list[Request] = []
        for at, prompt in enumerate(prompts):
            params = body.sampling_params(self._free_context(engine, prompt, body), default_tokens)
            if params.seed is None:
                params = params.model_copy(update={"seed": seed})
            if isinstance(body, ChatRequest):
                params = with_end_of_turn(params, self._turn_ends[engine.model])
            max_nodes = None if body.speculation is None else body.speculation.max_nodes
            if params.max_tokens == 1:  # nothing comes after its first token that could be drafted
                max_nodes = 0
            deadline = min(body.timeout_s or math.inf, self.args.limits.request_seconds)
            # Two clients may have chosen the same request id.
            unique = f"{id}.{secrets.token_hex(4)}.{at}"
            salt = "" if self.args.shared_prefixes else key
            requests += [
                Request(
                    f"{unique}.{answer}",
                    list(prompt),
                    params,
                    answer,
                    max_nodes,
                    at,
                    salt,
                    body.continues_text,
                    priority=body.priority or 0,
                    arrived=arrived,
                    max_wait_seconds=deadline,
                )
                for answer in range(n)
            ]
        tokens = prompt_tokens(requests) + sum(one.params.max_tokens for one in requests)
        await self._check_rate(key, tokens)
        return requests

    async def run(
        self, engine: EngineArgs, requests: Sequence[Request], retries: int = RETRIES
    ) -> AsyncGenerator[tuple[int, RequestOutput]]:
        """Yield the index of a request and its next output, as outputs arrive.

        Args:
            retries: process deaths that the request may still survive before it is given up.

        Raises:
            ApiError: an engine refuses or fails.
        """
        handle, attempts = self._handles[engine.name], self.args.limits.attempts
        admission = Admission(engine.engine.slots)
        streams = [
            admission.stream(number, partial(stream_with_failover, handle, call, attempts, retries))
            for number, call in enumerate(requests)
        ]
        async with aclosing(merge_streams(streams)) as stream:
            async for number, item in stream:
                if isinstance(item, Failure):
                    raise self._error(item, requests[number])
                yield number, item

    def _check_choices(self, body: GenerationRequest, prompts: int) -> None:
        n, limit = body.answers, self.args.limits.choices
        field = "n" if n == (body.n or 1) else "best_of"
        if prompts > limit:
            raise invalid_value(
                f"prompt: {prompts} prompts are more than {limit}, the most of one request; send fewer", "prompt"
            )
        if n * prompts > limit:
            answers = "answers" if prompts == 1 else f"answers to each of {prompts} prompts"
            message = f"{field}: {n} {answers} are more than {limit}, the most of one request; ask for fewer"
            raise invalid_value(message, field)

    def _free_context(self, engine: EngineArgs, prompt: Sequence[int], body: GenerationRequest) -> int:
        """Tokens of the context that the prompt leaves for the answer."""
        context, requested, field = self.context(engine), body.requested_tokens(), body.prompt_field
        if not prompt:
            raise invalid_value(f"{field}: it has no tokens; give some text", field)
        free = context - len(prompt)
        if free < (1 if requested is None else min(1, requested)):
            raise prompt_too_long(context, str(len(prompt)), field)
        cuts = self.args.limits.cut_max_tokens and not body.requires_exact_tokens(free)
        if requested is not None and requested > free and not cuts:
            total = len(prompt) + requested
            needed = f"you requested {total} tokens ({len(prompt)} in the {field}, {requested} new ones)"
            fix = f"reduce {body.tokens_field} to {free}, or the length of the {field}"
            raise context_error(context, needed, fix, body.tokens_field)
        return free

    async def _check_rate(self, key: str, tokens: int) -> None:
        if self._limiter is None:
            return
        wait = await self._limiter.take.remote(key, tokens)
        if wait:
            raise rate_limit_error("this key has reached its limit per minute", math.ceil(wait))

    def _error(self, failure: Failure, call: Request) -> ApiError:
        limits = self.args.limits
        seconds = max(limits.retry_after_s, failure.retry_seconds or 0)
        if failure.kind == "late" and call.priority:
            return rate_limit_error(failure.message, seconds)
        if failure.kind == "late" and (call.max_wait_seconds or 0.0) < limits.request_seconds:
            return rate_limit_error(f"timeout_s: {failure.message}", seconds)
        if failure.kind in {"full", "late"}:  # the service's own deadline is that of every request
            return engine_full_error(seconds)
        if failure.kind == "invalid":
            return invalid_value(failure.message, failure.message.partition(":")[0])
        headers = NO_RETRY if failure.kind in {"failed", "fatal"} else None
        return ApiError(_STATUS[failure.kind], failure.message, headers=headers)
