"""Request bodies: OpenAI's fields, vLLM's names where OpenAI has none, and the extension ``speculation``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    FiniteFloat,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from deployments.protocol.body import (
    MOST_ITEMS,
    Body,
    Count,
    Positive,
    Text,
    Texts,
    TokenLists,
    Tokens,
)
from deployments.protocol.compatibility import (
    CHAT,
    COMPLETION,
    MESSAGE,
    PART,
    ForeignFields,
)
from deployments.protocol.errors import invalid_value
from deployments.protocol.structured_fields import StructuredFields
from deployments.protocol.tools import CallId, ToolCalls, ToolFields
from deployments.protocol.value_checks import not_before_others, text_only
from entmtp.errors import EntMTPError
from entmtp.settings import SamplingParams

COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens for /v1/completions; a chat answer may fill the context."""

_BIASES, _STOP_CHARACTERS, _ITEMS = 1024, 1024, MOST_ITEMS


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _token_ids(given: Any) -> Any:
    """Check the keys of a logit bias, which are token ids written as text in JSON."""
    if isinstance(given, dict):
        if len(given) > _BIASES:
            raise PydanticCustomError("too_long", "at most {most} tokens can have a bias", {"most": _BIASES})
        if not all(isinstance(name, str) and name.isascii() and name.isdigit() and len(name) <= 10 for name in given):
            raise PydanticCustomError("token_id", "its names must be token ids; give ids")
    return given


class Speculation(Body):
    """Choice among a model's engines, and a limit of the draft trees. An extension of this service."""

    method: str | None = Field(None, description="heads and policy by one name: entmtp-dynamic, hydra-best, …")
    policy: str | None = Field(None, description="the policy alone: dynamic, goodput, ladder, best-static, …")
    task: str | None = Field(None, description="whose tree bank: humaneval, gsm8k, sharegpt, litbench, mixed")
    max_nodes: int | None = Field(None, ge=0, le=255, description="of each step's tree; 0 is plain decoding")


class StreamOptions(Body):
    """Options of a streamed response."""

    include_usage: bool | None = Field(None, description="a last chunk, without choices, has the usage")
    continuous_usage_stats: bool | None = Field(
        None, description="every chunk has the usage so far, where include_usage is set too"
    )
    include_obfuscation: bool | None = Field(None, description="taken and ignored: chunks are never padded")


class TextPart(Body):
    """A part of a message."""

    foreign: ClassVar[ForeignFields] = PART

    type: Annotated[Literal["text"], BeforeValidator(text_only)]
    text: Text


# A discriminated union reports the errors of one branch only.
Content = Annotated[
    Annotated[Text, Tag("[text]")]
    | Annotated[list[TextPart], Field(max_length=_ITEMS, fail_fast=True), Tag("[parts]")],
    Discriminator(lambda content: "[parts]" if isinstance(content, list) else "[text]"),
]


class Message(Body):
    """One turn of a chat."""

    foreign: ClassVar[ForeignFields] = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(None, description="null only of an assistant", validate_default=True)
    name: Text | None = None
    tool_calls: ToolCalls | None = Field(None, description="calls that an assistant made")
    tool_call_id: CallId | None = Field(
        None, description="the call whose result a tool's message is", validate_default=True
    )
    reasoning_content: Text | None = Field(None, description="reasoning before an assistant's content")
    reasoning: Text | None = Field(None, description="vLLM's new name of reasoning_content")

    @field_validator("content")
    @classmethod
    def _has_content(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role", "assistant") != "assistant":
            raise PydanticCustomError("no_content", "only an assistant's content may be null; give some text")
        return content

    @field_validator("tool_calls")
    @classmethod
    def _is_an_assistants(cls, calls: Any, info: ValidationInfo) -> Any:
        if calls and info.data.get("role", "assistant") != "assistant":
            raise PydanticCustomError("no_assistant", "only an assistant makes calls; leave it out")
        return calls

    @field_validator("tool_call_id")
    @classmethod
    def _has_a_call(cls, id: str | None, info: ValidationInfo) -> str | None:
        if id is None and info.data.get("role") == "tool":
            raise PydanticCustomError("no_call", "a tool's message answers a call; give the call's id")
        return id

    @property
    def text(self) -> str:
        """The content as one text."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "".join(part.text for part in parts)


class GenerationRequest(StructuredFields, ABC):
    """Fields common to chats and plain completions. Absent or null: the default of :class:`SamplingParams`.

    Attributes:
        prompt_field: name of the field with the prompt.
    """

    prompt_field: ClassVar[str]

    model: Annotated[str, Field(max_length=256)] = Field(description="one of those that /v1/models lists")
    max_tokens: Positive | None = Field(None, description="new tokens, at most")
    min_tokens: Count | None = Field(None, description="new tokens before an end of text or a stop string may end it")
    temperature: FiniteFloat | None = Field(None, description="0 takes the likeliest token")
    top_p: FiniteFloat | None = Field(
        None, description="only the likeliest tokens that have this much together; 0 takes the likeliest one"
    )
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(None, description="-1 or 0: all")
    min_p: FiniteFloat | None = Field(None, description="only tokens with this share of the likeliest one's chance")
    repetition_penalty: FiniteFloat | None = Field(None, description="divides the logits of all tokens seen")
    presence_penalty: FiniteFloat | None = Field(None, description="taken from the logits of tokens written")
    frequency_penalty: FiniteFloat | None = Field(None, description="the same, times how often they were")
    logit_bias: Annotated[dict[str, FiniteFloat], BeforeValidator(_token_ids)] | None = Field(
        None, description="added to logits, by token id"
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = Field(
        None, description="the same seed draws the same text; -1: any"
    )
    stop: (
        Annotated[
            list[Annotated[str, Field(max_length=_STOP_CHARACTERS)]],
            Field(max_length=16),
            BeforeValidator(_as_list),
        ]
        | None
    ) = Field(None, description="texts that end the answer; left out of it")
    stop_token_ids: Annotated[Tokens, Field(max_length=_ITEMS)] | None = Field(None, description="tokens that end it")
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="log-probabilities of the prompt's tokens, and of so many likeliest ones; not in a stream"
    )
    include_stop_str_in_output: bool | None = Field(None, description="what ends the answer belongs to its text")
    skip_special_tokens: bool | None = Field(None, description="false: special tokens have a text, their name")
    bad_words: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=_STOP_CHARACTERS)]], Field(max_length=256)] | None
    ) = Field(None, description="texts that the answer never contains")
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=2**31)] | None = Field(
        None, description="only so many tokens of the prompt's end are read; -1: as many as fit"
    )
    return_token_ids: bool | None = Field(None, description="the token ids of prompt and answer too")
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = Field(
        None, description="becomes a part of the answer's id"
    )
    priority: Annotated[int, BeforeValidator(not_before_others), Field(ge=0, lt=2**31)] | None = Field(
        None, description="a larger one waits for a slot until no smaller one does"
    )
    ignore_eos: bool | None = Field(None, description="the model's own end of text does not end it")
    acceptance: Literal["rejection", "typical"] | None = Field(None, description="'typical' changes the distribution")
    n: Positive | None = Field(None, description="answers to each prompt")
    stream: bool | None = Field(None, description="answer in server-sent events, as the text is written")
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = Field(None, description="goes into the log, as a hash")
    timeout_s: FiniteFloat | None = Field(None, gt=0, description="a deadline shorter than the service's own")
    speculation: Speculation | None = None

    def sampling_params(self, free_context: int, default_tokens: int | None) -> SamplingParams:
        """Sampling parameters of the request.

        Args:
            free_context: tokens of the context that the prompt leaves.
            default_tokens: new tokens if the client does not limit them; None: up to the end of the context.

        Raises:
            ApiError: a parameter is not accepted.
        """
        default = free_context if default_tokens is None else max(1, min(default_tokens, free_context))
        requested = self.requested_tokens()
        max_tokens = default if requested is None else min(requested, free_context)
        given = {
            name: value
            for name in SamplingParams.model_fields
            if name != "max_tokens" and (value := getattr(self, name, None)) is not None
        }
        given |= {"top_k": max(0, self.top_k or 0), "logprobs": self.requested_logprobs(), "max_tokens": max_tokens}
        given["prompt_logprobs"] = self.requested_prompt_logprobs()
        if self.top_p == 0:
            given |= {"top_p": 1.0, "temperature": 0.0}
        if self.seed is not None:
            given["seed"] = None if self.seed == -1 else self.seed % 2**64
        given["structured"] = self.requested_structure()
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        try:
            return SamplingParams.parse(**given)
        except EntMTPError as error:
            raise invalid_value(str(error), str(error).partition(":")[0]) from error

    @property
    @abstractmethod
    def continues_text(self) -> bool:
        """Whether an answer continues the prompt's text."""

    @property
    def answers(self) -> int:
        """Number of answers to each prompt that are generated."""
        return self.n or 1

    @property
    def tokens_field(self) -> str:
        """Name of the field that :meth:`requested_tokens` returns."""
        return "max_tokens"

    def requested_tokens(self) -> int | None:
        """Maximum number of new tokens; None if the client does not limit them."""
        return self.max_tokens

    def requires_exact_tokens(self, free_context: int) -> bool:
        """Whether an answer that is cut to ``free_context`` tokens would not be what the client wants."""
        return bool(self.ignore_eos) or (self.min_tokens or 0) > free_context

    def requested_prompt_logprobs(self) -> int | None:
        """Number of alternatives to each token of the prompt; None: no logprobs of the prompt."""
        if self.prompt_logprobs is not None and self.stream:
            raise invalid_value("prompt_logprobs: a stream does not have them; send stream false", "prompt_logprobs")
        return self.prompt_logprobs

    @abstractmethod
    def requested_logprobs(self) -> int | None:
        """Number of alternatives to each token; None: no logprobs."""


Messages = Annotated[list[Message], Field(min_length=1, max_length=_ITEMS, fail_fast=True)]


def refuse_two_ends(add_generation_prompt: bool | None, continue_final_message: bool | None) -> None:
    """Raise unless a chat ends in one way."""
    if add_generation_prompt and continue_final_message:
        raise PydanticCustomError(
            "two_ends", "continue_final_message goes on with a message, and add_generation_prompt ends it; give one"
        )


class ChatRequest(ToolFields, GenerationRequest):
    """Body of POST /v1/chat/completions."""

    foreign: ClassVar[ForeignFields] = CHAT
    prompt_field: ClassVar[str] = "messages"

    messages: Messages
    add_generation_prompt: bool | None = Field(None, description="false: no header of an answer after the messages")
    continue_final_message: bool | None = Field(None, description="the answer goes on with the last message's text")
    max_completion_tokens: Positive | None = Field(None, description="new name of max_tokens")
    logprobs: bool | None = Field(None, description="the log-probability of each token")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="number of likeliest tokens reported with each token"
    )

    @property
    def default_tokens(self) -> int | None:
        """New tokens, as far as the context has room, if none are requested; None: all that it has room for."""
        return None

    @model_validator(mode="after")
    def _one_end(self) -> ChatRequest:
        refuse_two_ends(self.add_generation_prompt, self.continue_final_message)
        return self

    @property
    def continues_text(self) -> bool:
        return bool(self.continue_final_message)

    def requested_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def tokens_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def requested_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise invalid_value("top_logprobs: it needs logprobs true; set both", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


def _prompt_tag(prompt: Any) -> str:
    if not isinstance(prompt, list):
        return "[text]"
    first = prompt[0] if prompt else ""
    return "[texts]" if isinstance(first, str) else "[token lists]" if isinstance(first, list) else "[tokens]"


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    foreign: ClassVar[ForeignFields] = COMPLETION
    prompt_field: ClassVar[str] = "prompt"

    prompt: Annotated[
        Annotated[Text, Tag("[text]")]
        | Annotated[Texts, Tag("[texts]")]
        | Annotated[Tokens, Tag("[tokens]")]
        | Annotated[TokenLists, Tag("[token lists]")],
        Discriminator(_prompt_tag),
    ] = Field(description="a text, several, or their token ids")
    max_tokens: Count | None = Field(None, description="new tokens, at most; 0 writes nothing, for echo")
    best_of: Positive | None = Field(
        None, description="so many answers are written, and the n with the highest log-probability per token returned"
    )
    echo: bool | None = Field(None, description="the prompt comes before the answer, with its logprobs if requested")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="log-probabilities of each token, and of so many likeliest ones"
    )

    @model_validator(mode="after")
    def _enough_answers(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise PydanticCustomError("best_of", "best_of must be at least n; give more, or a smaller n")
        return self

    @property
    def continues_text(self) -> bool:
        return True

    @property
    def answers(self) -> int:
        return self.best_of or self.n or 1

    @property
    def selects(self) -> bool:
        """Whether more answers are written than are returned."""
        return self.answers > (self.n or 1)

    def requested_logprobs(self) -> int | None:
        if self.selects and self.stream:
            raise invalid_value("best_of: a stream can't return the best answers; send stream false", "best_of")
        return 0 if self.selects and self.logprobs is None else self.logprobs

    def requested_prompt_logprobs(self) -> int | None:
        own = super().requested_prompt_logprobs()
        counts = [count for count in (own, self.logprobs if self.echo else None) if count is not None]
        return max(counts, default=None)

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids.

        Raises:
            ApiError: there is no prompt.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise invalid_value("prompt: it is empty; give some text", "prompt")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)
