"""Settings of the whole system, validated once, with units. All defaults are set here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, InstanceOf, ValidationError, model_validator

from entmtp.errors import EntMTPError, validation_message
from entmtp.structured import Structured

S = TypeVar("S", bound="Settings")

Kernels = Literal["auto", "triton", "fused", "fused-int16", "fused-int8", "packed", "merged", "eager"]
"""Kernels of a model's linear layers (:mod:`entmtp.models.kernels.choices`).

'auto': the fastest ones that keep the loaded model's text.
'triton': kernels for NVIDIA GPUs, of Llama-like models.
'fused': kernels compiled for this CPU.
'fused-int16', 'fused-int8': these, with the inputs of products with GGUF's blocks rounded to 16 or 8 bits. Faster, and
lossy.
'packed': on packed weights.
'merged': PyTorch's own, with layers that read the same states as one product.
'eager': PyTorch's own.
"""


Weights = Literal["own", "q8", "q4"]
"""A model's weights on a CPU: as it has them, or rounded at load to blocks of 32 with 8 or 4 bits per weight."""


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls: type[S], **values: Any) -> S:
        """Validate ``values``; raises EntMTPError with one line that names the setting, the value and the rule."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise EntMTPError(validation_message(first, ".".join(str(part) for part in first["loc"]))) from error


class CorpusSettings(Settings):
    """Settings of the training text (:mod:`entmtp.training.corpus`)."""

    slots: int = Field(64, ge=1, description="prompts answered at once")
    max_prompt_tokens: int = Field(256, ge=1, description="a longer prompt is left out")
    max_new_tokens: int = Field(192, ge=1, description="a longer answer is cut")
    prefill_tokens: int = Field(1024, ge=1, description="prompt tokens read between two steps")
    temperature: float = Field(0.7, gt=0, description="of the prompts that are sampled; the others are greedy")
    sampled_share: float = Field(1 / 3, ge=0, le=1, description="share of prompts that are sampled")
    part_tokens: int = Field(16_384, ge=1, description="tokens per file")
    seed: int = Field(0, description="of the sampling")


class PromptMixSettings(Settings):
    """Number of prompts of each kind for the training text (:mod:`entmtp.training.prompts`)."""

    chat: int = Field(default=4500, ge=0)
    code: int = Field(default=2000, ge=0)
    math: int = Field(default=1800, ge=0, description="word problems, before doubles are dropped")
    stories: int = Field(default=1800, ge=0, description="story ideas, before doubles are dropped")
    seed: int = 0


class TrainingSettings(Settings):
    """Settings of the training of draft heads (:mod:`entmtp.training.trainer`)."""

    kind: str = "hydra"
    num_heads: int | None = Field(None, ge=1, le=16, description="depth of the deepest tree; by default the kind's")
    inner_size: int | None = Field(None, ge=1, description="width of the hidden layers; by default the kind's")
    draft_vocab_size: int = Field(16_384, ge=16, description="tokens that the heads can guess, the most frequent ones")
    epochs: int = Field(5, ge=1)
    batch_size: int | None = Field(None, ge=1, description="positions per optimizer step; by default the kind's")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(100, ge=0)
    levels: int = Field(6, ge=1, le=16, description="most levels that heads with layers of their own are trained on")
    distillation: float = Field(0.5, ge=0, le=1, description="weight of the divergence from the model's distribution")
    frequent_candidates: int = Field(1024, ge=1, description="most frequent tokens in every step's candidate set")
    random_candidates: int = Field(1024, ge=1, description="random tokens in every step's candidate set")
    held_out_share: float = Field(0.03, gt=0, lt=1, description="share of answers set aside for the accuracy figures")
    checkpoint_every: int = Field(200, ge=1, description="optimizer steps between checkpoints")
    seed: int = 0


class CalibrationSettings(Settings):
    """Settings of the calibration of a tree bank (:mod:`entmtp.calibration.build`)."""

    prompts: int = Field(32, ge=2, description="calibration prompts per task")
    max_prompt_tokens: int = Field(1024, ge=1, description="a longer prompt is left out")
    max_new_tokens: int = Field(128, ge=8, description="tokens per prompt's trace")
    max_nodes: int = Field(63, ge=1, le=255, description="size of the largest tree")
    entropy_window: int = Field(8, ge=1, description="steps of the entropy's moving average")
    max_rungs: int = Field(4, ge=1, le=8, description="entropy bins, at most")


class LadderSettings(Settings):
    """Settings of the ladder policy (:mod:`entmtp.policies.ladder`)."""

    hysteresis: float = Field(0.05, ge=0, description="nats by which the entropy must pass a threshold")


Acceptance = Literal["rejection", "typical"]
Bias = Annotated[FiniteFloat, Field(ge=-100, le=100)]


class SamplingParams(Settings):
    """Sampling parameters of one request (:mod:`entmtp.decoding.sampling`); names and defaults are vLLM's and OpenAI's.

    Logits are processed in this order, as in transformers: penalties and bias, temperature, ``top_k``, ``top_p``,
    ``min_p``.

    With a ``seed``, answer j to prompt i of one call draws from the random stream of (seed, i, j). So equal prompts get
    independent texts, and the same call gets the same texts again. The only prompt of a call is prompt 0.
    """

    max_tokens: int = Field(256, ge=0, description="maximum number of new tokens; 0 only reads the prompt")
    min_tokens: int = Field(0, ge=0, description="new tokens before an end of text or a stop string may end it")
    temperature: FiniteFloat = Field(1.0, ge=0, le=100, description="0 takes the likeliest token")
    top_k: int = Field(0, ge=0, description="only this many of the likeliest tokens; 0: all")
    top_p: FiniteFloat = Field(1.0, gt=0, le=1, description="only the likeliest tokens with this total probability")
    min_p: FiniteFloat = Field(0.0, ge=0, le=1, description="only tokens with this share of the top probability")
    repetition_penalty: FiniteFloat = Field(1.0, ge=0.01, le=100, description="divides the logits of all tokens seen")
    presence_penalty: FiniteFloat = Field(
        0.0, ge=-2, le=2, description="subtracted from the logits of generated tokens"
    )
    frequency_penalty: FiniteFloat = Field(0.0, ge=-2, le=2, description="the same, times their count")
    logit_bias: dict[Annotated[int, Field(ge=0)], Bias] = Field(default_factory=dict, description="by token id")
    seed: int | None = Field(None, ge=0, lt=2**64, description="the same seed draws the same texts; None: any")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, max_length=16, description="texts that end the answer, which excludes them"
    )
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list, description="tokens that end it")
    include_stop_str_in_output: bool = Field(default=False, description="what ends the answer belongs to its text")
    skip_special_tokens: bool = Field(default=True, description="special tokens have no text")
    bad_words: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(
        default_factory=list, max_length=256, description="texts that the answer never contains"
    )
    ignore_eos: bool = Field(default=False, description="the model's end-of-text token does not end the answer")
    logprobs: int | None = Field(None, ge=0, le=20, description="number of likeliest tokens to return for each token")
    prompt_logprobs: int | None = Field(
        None, ge=0, le=20, description="number of likeliest tokens to return for each prompt token after the first"
    )
    acceptance: Acceptance = Field(
        "rejection", description="'rejection' keeps the distribution; 'typical' is Medusa's rule, which does not"
    )
    structured: InstanceOf[Structured] | None = Field(None, description="the form that the answer's text must have")

    @model_validator(mode="after")
    def _one_rule(self) -> SamplingParams:
        if self.structured is not None and self.acceptance == "typical":
            raise ValueError(
                "acceptance: 'typical' accepts tokens that a structured answer may not have; leave it at 'rejection'"
            )
        return self


CPU_METHOD, GPU_METHOD = "entmtp-dynamic", "entmtp-goodput"
"""The fastest methods on a CPU and on a GPU, as measured (``docs/performance.md``).

Trees that are expanded while the heads draft need the host between levels. On a GPU that takes longer than the levels.
"""
BALANCED = "balanced"
"""Device name that distributes a model over all visible GPUs."""
DEFAULT_METHOD = f"{CPU_METHOD} on a CPU, {GPU_METHOD} on a GPU"
"""Description of :func:`default_method` in help texts."""


def default_method(device: str) -> str:
    """Default method for ``device`` 'cpu', 'cuda' or 'balanced'."""
    return CPU_METHOD if device == "cpu" else GPU_METHOD


DEFAULT_CONTEXT = 2048
"""Tokens of prompt and answer together that a GPU has room for by default: there all memory is taken at the start."""
MAX_DEFAULT_CONTEXT = 131_072
"""The same on a CPU, for models that take more tokens, or any number."""


class EngineSettings(Settings):
    """Capacity and limits of an engine (:mod:`entmtp.decoding.engine`)."""

    slots: int = Field(8, ge=1, description="requests that run at once")
    context: int | None = Field(
        None,
        ge=1,
        description="tokens of each request, prompt and answer together; None: as many as the model takes, on a GPU"
        f" at most {DEFAULT_CONTEXT}",
    )
    prefill_tokens: int = Field(256, ge=1, description="maximum number of prompt tokens read between two steps")
    prefix_reuse: bool = Field(
        default=True, description="reuse the cached prefix that a prompt shares with an earlier text"
    )
    max_wait_seconds: FiniteFloat = Field(
        300.0, ge=0, description="a request that is predicted to wait for longer for a slot is refused"
    )
    max_waiting: int = Field(1024, ge=0, description="maximum number of requests that wait for a slot")

    @classmethod
    def for_one(cls, context: int | None = DEFAULT_CONTEXT) -> EngineSettings:
        """Make settings for one request at a time that reuses nothing of earlier ones, as a measurement needs."""
        return cls(slots=1, context=context, prefix_reuse=False)

    def context_of(self, positions: int, device: str) -> int:
        """Tokens of each request, for a model that takes ``positions`` tokens on a type of ``device``."""
        default = MAX_DEFAULT_CONTEXT if device == "cpu" else DEFAULT_CONTEXT
        return min(self.context or default, positions)


class BenchmarkSettings(Settings):
    """Size and sampling of a benchmark (:mod:`entmtp.evaluation.run.worker`)."""

    prompts: int = Field(6, ge=1, description="prompts per suite; an interval needs three")
    max_new_tokens: int = Field(24, ge=1, description="tokens per request")
    repetitions: int = Field(3, ge=1, description="timed runs of each arm on each prompt")
    shard_prompts: int = Field(1, ge=1, description="prompts per unit of work")
    temperature: FiniteFloat = Field(0.0, ge=0, le=100, description="0 takes the likeliest token")
    acceptance: Acceptance = Field("rejection", description="of all arms that draft, as in SamplingParams")
    seed: int = 0


QUICK = "quick"
PAPER_TEMPERATURE = 0.7
"""Temperature of the measurements in the papers on Medusa, Hydra and EntMTP."""
_PAPER = BenchmarkSettings(prompts=80, max_new_tokens=256, shard_prompts=4, temperature=PAPER_TEMPERATURE)
_STUDIES = {
    "study": BenchmarkSettings(prompts=14, max_new_tokens=48),
    "study-lossless": BenchmarkSettings(prompts=8, max_new_tokens=48, temperature=PAPER_TEMPERATURE),
    "study-typical": BenchmarkSettings(
        prompts=8, max_new_tokens=48, temperature=PAPER_TEMPERATURE, acceptance="typical"
    ),
}
STUDIES = tuple(_STUDIES)
"""Profiles that run every available arm: one at temperature 0, two at the paper's."""
_TYPICAL = _PAPER.model_copy(update={"acceptance": "typical"})
PROFILES: dict[str, BenchmarkSettings] = {
    QUICK: BenchmarkSettings(),
    "standard": BenchmarkSettings(prompts=10, max_new_tokens=128),
    **_STUDIES,
    "full": BenchmarkSettings(prompts=80, max_new_tokens=256, shard_prompts=4),
    "paper": _TYPICAL,
    "paper-long": _TYPICAL.model_copy(update={"max_new_tokens": 1024}),
    "paper-lossless": _PAPER,
    "paper-lossless-long": _PAPER.model_copy(update={"max_new_tokens": 1024}),
}
