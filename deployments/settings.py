"""Settings of the service, validated before it starts; `deployments/config.yaml` sets them under `args`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, ValidationInfo, field_validator, model_validator

from deployments.log_file import FOLDER
from deployments.protocol.tool_formats import TOOL_FORMATS
from entmtp.errors import quoted
from entmtp.method_spec import MethodSpec, check_heads_source, check_method
from entmtp.methods import policy_of
from entmtp.settings import DEFAULT_METHOD, EngineSettings, Kernels, Settings, Weights, default_method

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

_PART = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,95}"
ModelName = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART}){{0,2}}$")]
"""Model name as on model hubs: NAME or ORG/NAME."""

Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s*]+)$")]


class AutoscalingArgs(Settings):
    """Number of replicas of an engine (:mod:`deployments.engines.autoscaling`)."""

    min_replicas: int = Field(1, ge=0, description="0 lets an idle engine go; the next request waits for its start")
    max_replicas: int = Field(1, ge=1)
    target_seconds: FiniteFloat = Field(
        10.0, gt=0, description="outstanding tokens should take a replica so long at the speed that was measured"
    )
    upscale_delay_s: FiniteFloat = Field(5.0, ge=0, description="more are wanted for so long before more start")
    downscale_delay_s: FiniteFloat = Field(120.0, ge=0, description="fewer are wanted for so long before some go")

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingArgs:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self


class EngineArgs(Settings):
    """One served model with one method: a deployment of its own."""

    name: Name = Field(description="of the deployment; clients request `model_name`, and may add `speculation`")
    model_name: ModelName = Field(description="the `model` of requests; engines of one model differ in method or task")
    model: str = Field("bundled", description="'bundled', a hub name, a folder or a GGUF file")
    task: str = Field("sharegpt", description="whose tree bank is used")
    heads: str | None = Field(None, description="None: the bundled ones")
    bank: Path | None = Field(None, description="None: the bundled one of the task")
    device: Literal["cpu", "cuda", "balanced"] = Field(
        "cpu", description="balanced: spread over the replica's GPUs, for a model that one can't hold"
    )
    method: str = Field(
        None, validate_default=True, description=f"as of entmtp generate --method; None: {DEFAULT_METHOD}"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    kernels: Kernels = "auto"
    weights: Weights = Field("own", description="q8, q4: rounded at load, on a CPU")
    num_cpus: FiniteFloat | None = Field(
        None, gt=0, description="of a replica, for Ray, and its threads on a CPU; None: all of a node, or 1 with a GPU"
    )
    num_gpus: FiniteFloat = Field(0.0, ge=0, description="of a replica, for Ray")
    tool_format: str = Field(
        "auto", description="how the model writes tool calls; auto: as its chat template says, or else hermes"
    )
    reasoning_format: Literal["auto", "think", "none"] = Field(
        "auto", description="think: reasoning between <think> and </think>; auto: if the chat template has these"
    )
    engine: EngineSettings = Field(default_factory=EngineSettings)
    autoscaling: AutoscalingArgs = Field(default_factory=AutoscalingArgs)

    @property
    def policy(self) -> str:
        """Policy of the method, without its heads."""
        return policy_of(self.method)

    @field_validator("method", mode="before")
    @classmethod
    def _by_device(cls, given: Any, others: ValidationInfo) -> Any:
        return default_method(others.data.get("device", "cpu")) if given is None else given

    @field_validator("tool_format")
    @classmethod
    def _is_a_format(cls, given: str) -> str:
        if given != "auto" and given not in TOOL_FORMATS:
            raise ValueError(f"{quoted(given)} is unknown; choose one of auto, {', '.join(TOOL_FORMATS)}")
        return given

    @model_validator(mode="after")
    def _known(self) -> EngineArgs:
        method = MethodSpec(self.method, self.task, self.model, self.heads)
        check_method(method)
        check_heads_source(method)
        return self

    @model_validator(mode="after")
    def _pinned(self) -> EngineArgs:
        if self.device == "cuda" and not self.num_gpus:
            raise ValueError("num_gpus: 0 with device cuda; give each replica a GPU, or a share of one")
        if self.device == "balanced" and not (self.num_gpus > 1 and self.num_gpus.is_integer()):
            raise ValueError(f"num_gpus: {self.num_gpus:g} with device balanced; give each replica 2 GPUs or more")
        return self


class EngineChanges(Settings):
    """An engine's `user_config`: settings that `serve deploy` changes without a restart."""

    method: str | None = None
    task: str | None = None
    bank: Path | None = None
    prefill_tokens: int | None = Field(None, ge=1)
    prefix_reuse: bool | None = None
    max_wait_seconds: FiniteFloat | None = Field(None, ge=0)
    max_waiting: int | None = Field(None, ge=0)


class RoutingArgs(Settings):
    """Choice of the replica for a call (:mod:`deployments.engines.router`)."""

    imbalance_tokens: int = Field(
        2048, ge=0, description="a replica with this many more outstanding tokens than the least loaded is overloaded"
    )
    stats_period_s: FiniteFloat = Field(1.0, gt=0, description="how often replicas report load and cached prefixes")


class LimitArgs(Settings):
    """Limits of one request, and of one API key."""

    body_bytes: int = Field(2_000_000, ge=1024)
    body_seconds: FiniteFloat = Field(10.0, gt=0, description="until the whole body must have come")
    choices: int = Field(16, ge=1, description="n times prompts of one request")
    cut_max_tokens: bool = Field(
        default=True,
        description="max_tokens beyond the context are cut to what the prompt leaves of it, unless ignore_eos or"
        " min_tokens need them; false: refused",
    )
    request_seconds: FiniteFloat = Field(600.0, gt=0, description="until a request ends with an error")
    queued_requests: int = Field(
        64,
        ge=1,
        description="that wait in one ingress for a replica; more get 429. As many as an engine's replicas have room"
        " for may always wait, as each does for a moment until its replica is chosen",
    )
    queue_seconds: FiniteFloat = Field(
        0.25, ge=0, description="that a request waits for room while all replicas are full; then it gets 429"
    )
    retry_after_s: int = Field(1, ge=1, description="the least that a 429 advises, where no longer time is predicted")
    attempts: int = Field(4, ge=1, description="replicas that may be lost under one request before it fails")
    requests_per_minute: int | None = Field(None, ge=1, description="of one key")
    tokens_per_minute: int | None = Field(None, ge=1, description="of one key, prompt and most new ones together")


class AppArgs(Settings):
    """The application: an ingress and its engines."""

    engines: list[EngineArgs] = Field(min_length=1)
    ingress_replicas: int = Field(2, ge=1, description="two, so that one may die")
    routing: RoutingArgs = Field(default_factory=RoutingArgs)
    limits: LimitArgs = Field(default_factory=LimitArgs)
    api_keys_file: Path | None = Field(None, description="lines NAME:SHA256; see `python -m deployments.http.auth`")
    allow_anonymous: bool = Field(default=False, description="serve without keys on other addresses than loopback")
    shared_prefixes: bool = Field(
        default=False,
        description="reuse prefixes of other keys' texts too: faster, but timing reveals what others requested",
    )
    trace_share: FiniteFloat = Field(0.0, ge=0, le=1, description="of the requests, as OpenTelemetry spans")
    cors_origins: list[Origin] = Field(
        default_factory=list, description="whose pages may send requests from a browser, as https://HOST; '*': all"
    )
    log_folder: Path = Field(FOLDER, description="of the request log, on every node; '~' is the home there")
    log_prompts: bool = Field(default=False, description="write prompts and answers to the log")

    @model_validator(mode="after")
    def _rooted(self) -> AppArgs:
        if not (self.log_folder.is_absolute() or self.log_folder.parts[:1] == ("~",)):
            raise ValueError(f"log_folder: {self.log_folder} depends on where a process runs; begin it with / or ~/")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> AppArgs:
        _refuse_doubles("name", [one.name for one in self.engines])
        _refuse_doubles("model_name, method and task", [(one.model_name, one.method, one.task) for one in self.engines])
        for name in {one.model_name for one in self.engines}:
            if len({one.model for one in self.engines if one.model_name == name}) > 1:
                raise ValueError(f"engines: model_name '{name}' stands for different models; give each its own")
        return self


def _refuse_doubles(key: str, values: Sequence[object]) -> None:
    if double := next((value for value in values if values.count(value) > 1), None):
        raise ValueError(f"engines: two have the same {key} {double}; give each its own")
