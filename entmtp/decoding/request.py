"""A request, and its state while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from entmtp.decoding.outputs import StepRecord, TokenLogprobs
from entmtp.decoding.sampling import GREEDY, Sampler
from entmtp.errors import EntMTPError
from entmtp.policies.signals import SignalTracker
from entmtp.settings import SamplingParams
from entmtp.trees.bank import MAX_NODES


class InvalidRequestError(EntMTPError):
    """A request that can't be served as it is; says which part of it is at fault."""


@dataclass(frozen=True)
class Request:
    """What someone asks for.

    Attributes:
        id: names it in errors, logs and progress; unique among those that wait or run.
        prompt: token ids.
        number: which of several answers to one prompt with one seed this is.
        prompt_number: which of several prompts with one seed this is. Each pair of numbers draws from a random stream
            of its own, so that equal prompts get different texts.
        max_nodes: of its trees, at most; the policy chooses within that. 0 is plain decoding: the heads don't run. None
            leaves it to the policy.
        cache_salt: prompts begin only with texts of the same salt, so that one user can't time another's.
        continues_text: whether the answer's text goes on from the prompt's, so that a space between the two is part of
            it. Otherwise, as in a chat, it is a text of its own.
    """

    id: str
    prompt: Sequence[int]
    params: SamplingParams
    number: int = 0
    max_nodes: int | None = None
    prompt_number: int = 0
    cache_salt: str = ""
    continues_text: bool = False


def check_request(request: Request, vocab_size: int, window: int) -> None:
    """Checks a request against a model of ``vocab_size`` tokens and a context of ``window``.

    Raises:
        InvalidRequestError: its prompt is empty, it and its answer exceed the context, a parameter does not fit.
    """
    prompt, params = request.prompt, request.params
    if not prompt:
        raise InvalidRequestError("prompt: it has no tokens; give some text")
    if len(prompt) + params.max_tokens > window:
        raise InvalidRequestError(
            f"prompt: {len(prompt)} tokens and {params.max_tokens} new ones exceed the context of {window};"
            " shorten the prompt or ask for fewer tokens"
        )
    ids = {"prompt": prompt, "logit_bias": list(params.logit_bias), "stop_token_ids": params.stop_token_ids}
    for name, tokens in ids.items():
        if (wrong := next((token for token in tokens if not 0 <= token < vocab_size), None)) is not None:
            raise InvalidRequestError(f"{name}: token {wrong} is not one of the model's {vocab_size}; give others")
    if params.min_tokens > params.max_tokens:
        raise InvalidRequestError(
            f"min_tokens: {params.min_tokens} is more than max_tokens {params.max_tokens}; ask for fewer"
        )


@dataclass
class RunningRequest:
    """A request in a cache slot.

    ``tokens`` are those that came out so far. The *root* was chosen by the model from a distribution of ``entropy``
    nats, and comes out with the next step. ``sampler`` chooses, greedily where nothing else is said.
    ``logprobs``, where they are asked for, are of ``tokens`` and of the root. ``max_nodes`` is the request's own.
    ``finite`` says whether all that was written to its cache rows were numbers, and ``failure`` why it can't go on.
    """

    slot: int
    tracker: SignalTracker
    policy_state: Any
    root: int
    entropy: float
    sampler: Sampler = field(default_factory=lambda: Sampler(GREEDY))
    tokens: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    max_nodes: int | None = None
    finite: bool = True
    failure: Exception | None = None

    @property
    def node_limit(self) -> int:
        """Nodes that each of its trees may have: its own limit, or that of all trees."""
        return MAX_NODES if self.max_nodes is None else self.max_nodes
