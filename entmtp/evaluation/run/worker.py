"""The worker of a benchmark: runs every arm on every prompt of a unit, several times, on one device.

The order of the arms rotates. The reference of a request is the model's own ``generate``; at a temperature above 0 it
is what plain decoding draws with the same seed. The reference gives the rank trace that the controls need. Neither the
reference nor the scoring is part of a measured time. Nor is the warm-up. Where steps become CUDA graphs, each arm first
generates the text that is timed afterwards, until no step captures a graph. Elsewhere each arm generates a few tokens
of the suite's first prompt.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from entmtp import methods
from entmtp.calibration.thresholds import retune
from entmtp.decoding.measure_cost import step_cost
from entmtp.decoding.outputs import Completion
from entmtp.evaluation.results.rows import RequestRow, StepRow, tables_of
from entmtp.evaluation.run.arm_engines import ArmEngines, complete
from entmtp.evaluation.run.arms import (
    Foresight,
    Toolbox,
    is_priced,
    make_engine,
    needs_foresight,
    params_of,
    transfer_suite,
)
from entmtp.evaluation.run.completion_rows import TimedRequest, request_row, step_rows
from entmtp.evaluation.run.likelihood import TextLikelihood
from entmtp.evaluation.run.reference import Reference, complete_history, greedy_tokens, make_reference, truncate_at_stop
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import UnitOutcome
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import load_heads
from entmtp.methods import heads_of
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_weights
from entmtp.persistent_paths import cache_folder
from entmtp.policies.step_cost import CostTable, hardware_name
from entmtp.settings import BenchmarkSettings, EngineSettings, SamplingParams
from entmtp.suites import MIXED, Prompt, get_suite
from entmtp.suites.base import Message
from entmtp.trees.bank import TreeBank, load_bank

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class WorkerConfig:
    """Model, heads, banks and device of a worker.

    Attributes:
        model: a name as for ``--model``.
        heads: folder or hub name by kind.
        banks: bank file by suite (or 'mixed'), then by kind of heads.
        device: 'cpu', 'cuda' or 'balanced'.
        threads: CPU threads of the worker.
        dtype: of the model and its heads; only float32 guarantees the model's own text.
    """

    model: str
    heads: Mapping[str, str]
    banks: Mapping[str, Mapping[str, str]]
    device: str
    threads: int
    dtype: str = "float32"


@dataclass(frozen=True)
class UnitContext:
    """Inputs that all prompts of a unit share."""

    suite: str
    arms: tuple[str, ...]
    settings: BenchmarkSettings
    tools: Toolbox

    def seed_of(self, prompt: Prompt) -> str:
        """Seed of a prompt, as a string: of its texts, the order of its arms and its shuffled trees."""
        return f"{self.settings.seed}-{prompt.id}"


class Worker:
    """A loaded model with its heads; runs one unit after another."""

    def __init__(self, config: WorkerConfig, say: Callable[[str], None] = print) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self._loaded, self.tokenizer = load_weights(config.model, dtype=config.dtype, device=config.device)
        self.backbone = build_backbone(self._loaded)
        self.heads: dict[str, DraftHeads] = {
            kind: load_heads(source, self.backbone).draft_only() for kind, source in config.heads.items()
        }
        self._costs: dict[str, CostTable] = {}
        self._engines: ArmEngines | None = None
        self._say = say
        self._tuned: dict[str, dict[str, TreeBank]] = {}
        self._warm: set[tuple[str, str]] = set()
        self._warm_up_seconds = 0.0

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model by transformers' own code, which writes the reference; made when it is first read."""
        from entmtp.models.transformers_model import reference_model

        return reference_model(self._loaded)

    @property
    def hardware(self) -> str:
        """Name of the hardware that this worker's times depend on."""
        return hardware_name(self.backbone.device, len(self.backbone.devices))

    def run(self, unit: Unit, arms: Sequence[str], settings: BenchmarkSettings) -> UnitOutcome:
        """Run all arms on a unit's prompts. A prompt that fails leaves no row and does not stop the others.

        Raises:
            EntMTPError: the run itself can't go on, as with a bank that doesn't fit the heads.
            RuntimeError: the device no longer works, as after some CUDA errors; a new process may.
        """
        context = UnitContext(unit.suite, tuple(arms), settings, self._toolbox(unit.suite, arms))
        began = time.perf_counter()  # after the toolbox: what is made once is no part of a unit's time
        self._warm_up_seconds = 0.0
        requests: list[RequestRow] = []
        steps: list[StepRow] = []
        failures: dict[str, str] = {}
        histories: dict[str, list[Message]] = {}
        for number, prompt in enumerate(unit.prompts, start=unit.first):
            try:
                max_tokens = text_params(prompt, settings).max_tokens
                history = complete_history(self.model, self.tokenizer, prompt.history, max_tokens)
                rows = self._run_prompt(context, unit, prompt, history, number)
            except Exception as error:
                failures[prompt.id] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                self._release_engines()
                self._check_device()
                continue
            histories[prompt.id] = history
            for request, its_steps in rows:
                requests.append(request)
                steps += its_steps
        metadata = {**self._metadata(), "histories": histories}
        return UnitOutcome(*tables_of(requests, steps), failures, time.perf_counter() - began, metadata)

    def _measure_costs(self, arms: Sequence[str]) -> None:
        """Measure the step cost of the heads whose arms choose trees by cost. The first time takes a while."""
        for kind in sorted({heads_of(arm, self.heads) for arm in arms if is_priced(arm)} - set(self._costs)):
            self._costs[kind] = step_cost(self.backbone, self.heads[kind], cache_folder(), self._say)
            self._tuned.clear()

    def _metadata(self) -> dict[str, Any]:
        """Metadata of a part: the worker's peak memory, warm-up time, step costs and hardware."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        costs = {kind: cost.typical.model_dump() for kind, cost in self._costs.items()}
        device = self.backbone.device
        return {
            "peak_memory_mib": peak,
            "peak_device_memory_mib": torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else 0.0,
            "warm_up_seconds": self._warm_up_seconds,
            "costs": costs,
            "hardware": self.hardware,
        }

    def _check_device(self) -> None:
        """Raise the device's pending error, if it has one."""
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)
            torch.cuda.empty_cache()

    def _toolbox(self, suite: str, arms: Sequence[str]) -> Toolbox:
        """Heads, banks and costs of the arms on a suite."""
        self._measure_costs(arms)
        definition = get_suite(suite)
        sources = {"entmtp-transfer": transfer_suite(definition.family), "entmtp-mixed": MIXED}
        foreign = {arm: self._banks(source) for arm, source in sources.items() if arm in arms}
        tokenizer = self.tokenizer.backend_tokenizer if definition.protocol.stop else None
        return Toolbox(self.backbone, self.heads, self._tuned_banks(suite), self._costs, foreign, tokenizer)

    def _tuned_banks(self, suite: str) -> dict[str, TreeBank]:
        """The suite's banks, their ladders tuned to this machine. Arms with foreign banks use no ladder."""
        if suite not in self._tuned:
            banks = self._banks(suite)
            self._tuned[suite] = {
                kind: retune(bank, self._costs[kind], self._say) if kind in self._costs else bank
                for kind, bank in banks.items()
            }
        return self._tuned[suite]

    def _banks(self, task: str) -> dict[str, TreeBank]:
        """Banks of a suite (or 'mixed') by kind of heads, each checked against the loaded heads."""
        banks = {kind: load_bank(Path(path)) for kind, path in self.config.banks[task].items()}
        for kind, bank in banks.items():
            bank.check_heads(
                kind=kind,
                num_heads=self.heads[kind].num_heads,
                model_fingerprint=self.backbone.fingerprint,
                heads_fingerprint=self.heads[kind].fingerprint,
                estimates_acceptance=self.heads[kind].estimates_acceptance,
            )
        return banks

    def _run_prompt(
        self, context: UnitContext, unit: Unit, prompt: Prompt, history: Sequence[Message], number: int
    ) -> list[tuple[RequestRow, list[StepRow]]]:
        """Rows of all arms and repetitions on one prompt, the suite's ``number``-th."""
        arms, repetitions = context.arms, context.settings.repetitions
        params = text_params(prompt, context.settings)
        ids = encode_chat(self.tokenizer, prompt.text, history)
        reference = self._reference(ids, params, context.tools)
        engines = self._prepare_engines(context, prompt, ids, params, reference)
        finished: list[tuple[TimedRequest, Completion]] = []
        # The order rotates, so that each arm comes early and late. It starts from the prompt's own random order, so
        # that no arm always follows the same other one.
        order_of_prompt = random.Random(context.seed_of(prompt)).sample(arms, len(arms))
        for repetition in range(repetitions):
            shift = (number * repetitions + repetition) % len(arms)
            for order, arm in enumerate([*order_of_prompt[shift:], *order_of_prompt[:shift]]):
                completion = engines.complete(arm, ids, params_of(arm, params))
                finished.append((TimedRequest(unit, prompt, arm, repetition, order), completion))
        # After the last timed run: running an answer's code or the model would disturb the run that follows.
        likelihood, rows = TextLikelihood(self.model, ids), []
        for request, completion in finished:
            text = self._text(prompt.suite, completion)
            row = request_row(request, len(ids), completion, text, reference, likelihood(completion.tokens))
            rows.append((row, step_rows(row, completion)))
        return rows

    def _prepare_engines(
        self, context: UnitContext, prompt: Prompt, ids: list[int], params: SamplingParams, reference: Reference
    ) -> ArmEngines:
        """The suite's engines with the policies for a prompt, warmed up with what will be timed."""
        foresight = None
        if any(map(needs_foresight, context.arms)):
            assert reference.trace is not None
            room = EngineSettings.for_one(len(ids) + len(reference.tokens))
            whole_text = params.model_copy(update={"max_tokens": len(reference.tokens)})
            dynamic_run = complete(make_engine("entmtp-dynamic", context.tools, room), ids, whole_text)
            foresight = Foresight(reference.trace, dynamic_run, context.seed_of(prompt))
        engines = self._engines_of(context, len(ids) + params.max_tokens)
        engines.set_policies(foresight)
        began = time.perf_counter()
        few_tokens = params.model_copy(update={"max_tokens": min(8, len(reference.tokens))})
        for arm in context.arms:
            if engines.captures_steps(arm):
                engines.warm_up(arm, ids, params_of(arm, params))
            elif (context.suite, arm) not in self._warm:
                engines.complete(arm, ids, params_of(arm, few_tokens))
                self._warm.add((context.suite, arm))
        self._warm_up_seconds += time.perf_counter() - began
        return engines

    def _engines_of(self, context: UnitContext, tokens: int) -> ArmEngines:
        """Engines for texts of ``tokens`` tokens; those of the last prompt where they fit."""
        tokens = min(tokens, self.backbone.max_context)
        if self._engines is None or not self._engines.fits(context.suite, context.arms, tokens):
            self._release_engines()
            self._engines = ArmEngines(context.suite, context.arms, context.tools, tokens)
        return self._engines

    def _release_engines(self) -> None:
        """Free the engines' memory before other engines take theirs."""
        self._engines = None
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    def _reference(self, ids: list[int], params: SamplingParams, tools: Toolbox) -> Reference:
        """The model's own text for a prompt, with its rank trace."""
        drawn = params.temperature > 0
        if drawn:
            plain = params_of("autoregressive", params)
            room = EngineSettings.for_one(len(ids) + params.max_tokens)
            tokens = complete(make_engine("autoregressive", tools, room), ids, plain).tokens
        else:
            tokens = greedy_tokens(self.model, ids, params.max_tokens)
            if tools.tokenizer is not None:
                tokens = truncate_at_stop(tokens, tools.tokenizer, params.stop)
        return make_reference(
            self.backbone, self.heads.get(heads_of(methods.BANK_ORACLE, self.heads)), ids, tokens, drawn
        )

    def _text(self, suite: str, completion: Completion) -> str:
        """Text of a completion."""
        # Only an engine that looks for stop texts makes the text itself.
        if get_suite(suite).protocol.stop:
            return completion.text
        return str(self.tokenizer.decode(completion.tokens, skip_special_tokens=True))


def text_params(prompt: Prompt, settings: BenchmarkSettings) -> SamplingParams:
    """Sampling parameters of a prompt, the same for every arm and repetition. The seed is the prompt's own."""
    protocol = get_suite(prompt.suite).protocol
    return SamplingParams(
        max_tokens=protocol.token_budget(settings.max_new_tokens),
        temperature=settings.temperature,
        acceptance=settings.acceptance,
        stop=list(protocol.stop),
        seed=random.Random(f"{settings.seed}-{prompt.id}").getrandbits(63),  # as UnitContext.seed_of
    )
