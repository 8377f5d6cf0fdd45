"""What clients may ask for: OpenAI's requests, with vLLM's names where OpenAI has none, and ``speculation``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from deployments.errors import ApiError
from entmtp.errors import EntMTPError
from entmtp.settings import SamplingParams

IGNORED = frozenset(
    {
        *("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store"),
    }
)
"""OpenAI's own fields that change nothing about the text: taken and ignored."""

COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat answer may fill the context."""

Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(max_length=1_000_000)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
"""An id of any vocabulary: the engine knows the model's own, but until there it must be a number that fits."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Body(BaseModel):
    """A JSON body: an unknown field is an error, and so is a number in quotes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Speculation(Body):
    """Which of a model's engines answers, and how far it may guess. An extension of this service."""

    method: str | None = Field(None, description="heads and policy by one name: entmtp-dynamic, hydra-best, …")
    policy: str | None = Field(None, description="the policy alone: dynamic, goodput, ladder, best-static, …")
    task: str | None = Field(None, description="whose tree bank: humaneval, gsm8k, sharegpt, litbench, mixed")
    max_nodes: int | None = Field(None, ge=0, le=255, description="of each step's tree; 0 is plain decoding")


class StreamOptions(Body):
    """How a stream is told."""

    include_usage: bool = False


class TextFormat(Body):
    """The only format there is."""

    type: Literal["text"]


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None

    def as_template(self) -> dict[str, str]:
        """What a chat template reads."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | ({"name": self.name} if self.name else {})


class Generation(Body, ABC):
    """What chat and plain completions have in common. Absent or null: the default of :class:`SamplingParams`."""

    model: Annotated[str, Field(max_length=256)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Count | None = None
    temperature: FiniteFloat | None = None
    top_p: FiniteFloat | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="-1 or 0: all")
    min_p: FiniteFloat | None = None
    repetition_penalty: FiniteFloat | None = None
    presence_penalty: FiniteFloat | None = None
    frequency_penalty: FiniteFloat | None = None
    logit_bias: dict[str, FiniteFloat] | None = Field(None, max_length=1024, description="by token id")
    seed: int | None = None
    stop: Annotated[list[str], BeforeValidator(_as_list)] | None = None
    stop_token_ids: list[Token] | None = None
    ignore_eos: bool | None = None
    acceptance: Literal["rejection", "typical"] | None = Field(None, description="'typical' changes the distribution")
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = Field(None, description="goes into the log, as a hash")
    timeout_s: FiniteFloat | None = Field(None, gt=0, description="a deadline shorter than the service's own")
    speculation: Speculation | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if name not in IGNORED} if isinstance(body, dict) else body

    def sampling(self, room: int, default_tokens: int | None) -> SamplingParams:
        """For a prompt that leaves ``room`` tokens of the context; ``default_tokens`` None fills it.

        Raises:
            ApiError: names the field.
        """
        most = self.asked_tokens() or max(1, room if default_tokens is None else min(default_tokens, room))
        given = {
            name: value
            for name in SamplingParams.model_fields
            if name != "max_tokens" and (value := getattr(self, name, None)) is not None
        }
        given |= {"top_k": max(0, self.top_k or 0), "logprobs": self.wanted_logprobs(), "max_tokens": most}
        if self.logit_bias is not None:
            given["logit_bias"] = self._biases(self.logit_bias)
        try:
            return SamplingParams.parse(**given)
        except EntMTPError as error:
            raise ApiError(400, str(error), param=str(error).partition(":")[0]) from error

    def asked_tokens(self) -> int | None:
        """New tokens at most, if the client said."""
        return self.max_tokens

    @abstractmethod
    def wanted_logprobs(self) -> int | None:
        """Alternatives beside each token; None: no logprobs."""

    @staticmethod
    def _biases(given: dict[str, float]) -> dict[int, float]:
        wrong = next((token for token in given if not token.isascii() or not token.isdigit()), None)
        if wrong is not None:
            raise ApiError(400, f"logit_bias: '{wrong[:40]}' is not a token id; give ids", param="logit_bias")
        return {int(token): bias for token, bias in given.items()}


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1024)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None

    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def wanted_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs: it needs logprobs true; set both", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: Text | list[Text] | list[Token] | list[list[Token]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, a text or token ids.

        Raises:
            ApiError: if there is none.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise ApiError(400, "prompt: it is empty; give some text", param="prompt")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TokenizeRequest(Body):
    """POST /tokenize: of a text, or of a chat as its template writes it."""

    model: Annotated[str, Field(max_length=256)]
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=1024)
