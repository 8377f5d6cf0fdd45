"""A request as a caller states it, and the check of whether the model can serve it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from entmtp.errors import EntMTPError
from entmtp.settings import SamplingParams


class InvalidRequestError(EntMTPError):
    """Raised for a request that can't be served; the message names the invalid part."""


@dataclass(frozen=True)
class Request:
    """A prompt to complete, with its parameters.

    Attributes:
        id: names the request in errors, logs and outputs; unique among those that wait or run.
        prompt: token ids.
        answer_index: index among several answers to one prompt with one seed.
        prompt_index: index among several prompts with one seed. Each pair of indices draws from a random stream of its
            own, so that equal prompts get different texts.
        max_nodes: largest size of its trees; the policy chooses within it. 0 is plain decoding without the heads. None
            leaves the size to the policy.
        cache_salt: only prefixes with the same salt are reused, so that users can't probe each other's prompts by
            timing.
        continues_text: whether the answer's text goes on from the prompt's, so that a space between the two belongs to
            it. Otherwise, as in a chat, it is a text of its own.
        priority: requests with a smaller number get a slot first, and among equal ones those that arrived first.
        arrived: time at which a service received it, in seconds since 1970. Of two requests with the same time, as
            without a service, the one that is submitted first has arrived first.
        scored_from: position of the first prompt token whose log-probability is reported, if ``params`` want these. A
            cached prefix is reused before it only.
        max_wait_seconds: predicted time for a slot beyond which it is refused, if that is shorter than the engine's.
    """

    id: str
    prompt: Sequence[int]
    params: SamplingParams
    answer_index: int = 0
    max_nodes: int | None = None
    prompt_index: int = 0
    cache_salt: str = ""
    continues_text: bool = False
    priority: int = 0
    arrived: float = 0.0
    scored_from: int = 1
    max_wait_seconds: float | None = None

    @property
    def turn(self) -> tuple[int, float]:
        """Sort key of its turn among those that wait for a slot."""
        return self.priority, self.arrived

    @property
    def reusable_tokens(self) -> int:
        """Prompt tokens whose hidden states are not needed, so that a cached prefix may stand for them."""
        needed = len(self.prompt) if self.params.prompt_logprobs is None else self.scored_from
        return min(needed, len(self.prompt)) - 1


def check_request(request: Request, vocab_size: int, context: int, max_context: int) -> None:
    """Check a request against a model of ``vocab_size`` tokens, in an engine for texts of ``context`` tokens.

    ``max_context`` is the most tokens that the model can take.

    Raises:
        InvalidRequestError: if the prompt is empty, prompt and answer exceed the context, or a parameter does not fit.
    """
    prompt, params, window = request.prompt, request.params, min(context, max_context)
    if not prompt:
        raise InvalidRequestError("prompt: it has no tokens; give some text")
    if len(prompt) + params.max_tokens > window:
        raise InvalidRequestError(
            f"prompt: {len(prompt)} tokens and {params.max_tokens} new ones exceed the context of {window};"
            f" shorten the prompt{'' if context >= max_context else ', set a longer context'} or ask for fewer tokens"
        )
    ids = {"prompt": prompt, "logit_bias": list(params.logit_bias), "stop_token_ids": params.stop_token_ids}
    for name, tokens in ids.items():
        if (wrong := next((token for token in tokens if not 0 <= token < vocab_size), None)) is not None:
            raise InvalidRequestError(f"{name}: token {wrong} is not one of the model's {vocab_size}; give others")
    if params.min_tokens > params.max_tokens:
        raise InvalidRequestError(
            f"min_tokens: {params.min_tokens} is more than max_tokens {params.max_tokens}; ask for fewer"
        )
