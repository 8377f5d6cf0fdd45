"""Runs units of the benchmark on one device: every arm on every prompt, in rotating order, several times over.

The reference of every request is the model's own ``generate``; where texts are drawn, it is what plain decoding draws
with the same seed. Its text gives the rank trace from which the controls know a prompt beforehand; neither that pass
nor the scoring of texts is part of any measured time. Nor is the warm-up: where steps become CUDA graphs, each arm
first writes the very text that is timed afterwards, until nothing of it is captured any more; elsewhere a few tokens of
the suite's first prompt.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entmtp import methods
from entmtp.calibration.thresholds import retune
from entmtp.decoding.measure_cost import step_cost
from entmtp.decoding.outputs import Completion
from entmtp.evaluation.results.rows import RequestRow, StepRow, tables_of
from entmtp.evaluation.run.arm_engines import ArmEngines, complete
from entmtp.evaluation.run.arms import (
    TRANSFER,
    Foresight,
    Toolbox,
    is_priced,
    make_engine,
    needs_foresight,
    params_of,
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
from entmtp.models.loading.bundled import cache_folder
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.step_cost import CostTable, hardware_name
from entmtp.settings import BenchmarkSettings, SamplingParams
from entmtp.suites import Prompt, get_suite
from entmtp.suites.base import Message
from entmtp.trees.bank import MIXED, TreeBank, load_bank


@dataclass(frozen=True)
class WorkerConfig:
    """Where a worker finds its parts.

    Attributes:
        model: a name as for ``--model``.
        heads: folder or hub name by kind.
        banks: bank file by suite (or 'mixed'), then by kind of heads.
        device: 'cpu', 'cuda' or 'balanced'.
        threads: CPU threads of the worker.
        dtype: in which the model and its heads run; texts are surely the model's own in float32 alone.
    """

    model: str
    heads: Mapping[str, str]
    banks: Mapping[str, Mapping[str, str]]
    device: str
    threads: int
    dtype: str = "float32"


class Worker:
    """A loaded model with its heads; runs one unit after another."""

    def __init__(self, config: WorkerConfig, say: Callable[[str], None] = print) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        # The reference is written by the model as transformers loads it; the backbone works on a copy of its own.
        self.model, self.tokenizer = load_model(config.model, dtype=config.dtype, device=config.device)
        self.backbone = build_backbone(self.model)
        self.heads: dict[str, DraftHeads] = {
            kind: load_heads(source, self.backbone) for kind, source in config.heads.items()
        }
        self._costs: dict[str, CostTable] = {}
        self._engines: ArmEngines | None = None
        self._say = say
        self._tuned: dict[str, dict[str, TreeBank]] = {}
        self._warm: set[tuple[str, str]] = set()
        self._warm_up_seconds = 0.0

    @property
    def hardware(self) -> str:
        """What this worker's times depend on."""
        return hardware_name(self.backbone.device, len(self.backbone.devices))

    def run(self, task: Unit, arms: Sequence[str], settings: BenchmarkSettings) -> UnitOutcome:
        """Rows of a unit's prompts; one that fails leaves no row and doesn't stop the others.

        Raises:
            EntMTPError: what fails is not a prompt but the run itself: a bank that doesn't fit the heads.
            RuntimeError: the device no longer works, as after some CUDA errors; a new process may.
        """
        tools = self._toolbox(task.suite, arms)
        began = time.perf_counter()  # what is done once is no part of what a unit takes
        self._warm_up_seconds = 0.0
        requests: list[RequestRow] = []
        steps: list[StepRow] = []
        failures: dict[str, str] = {}
        histories: dict[str, list[Message]] = {}
        for number, prompt in enumerate(task.prompts, start=task.first):
            try:
                most = text_params(prompt, settings).max_tokens
                history = complete_history(self.model, self.tokenizer, prompt.history, most)
                rows = self._prompt(task, prompt, history, number, arms, settings, tools)
            except Exception as error:
                failures[prompt.id] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                self._release_engines()
                self._check_device()
                continue
            histories[prompt.id] = history
            for row, its_steps in rows:
                requests.append(row)
                steps += its_steps
        measured = {**self._metadata(), "histories": histories}
        return UnitOutcome(*tables_of(requests, steps), failures, time.perf_counter() - began, measured)

    def _measure_costs(self, arms: Sequence[str]) -> None:
        """Measure steps with those heads alone by whose cost some arm chooses its trees: it takes a while at first."""
        for kind in sorted({heads_of(arm, self.heads) for arm in arms if is_priced(arm)} - set(self._costs)):
            self._costs[kind] = step_cost(self.backbone, self.heads[kind], cache_folder(), self._say)
            self._tuned.clear()

    def _metadata(self) -> dict[str, Any]:
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
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)
            torch.cuda.empty_cache()

    def _toolbox(self, suite: str, arms: Sequence[str]) -> Toolbox:
        self._measure_costs(arms)
        of_suite = get_suite(suite)
        sources = {"entmtp-transfer": TRANSFER[of_suite.family], "entmtp-mixed": MIXED}
        foreign = {arm: self._banks(source) for arm, source in sources.items() if arm in arms}
        tokenizer = self.tokenizer.backend_tokenizer if of_suite.protocol.stop else None
        return Toolbox(self.backbone, self.heads, self._tuned_banks(suite), self._costs, foreign, tokenizer)

    def _tuned_banks(self, suite: str) -> dict[str, TreeBank]:
        """The suite's banks with ladders for this machine; what chooses by a foreign bank has no ladder."""
        if suite not in self._tuned:
            banks = self._banks(suite)
            self._tuned[suite] = {
                kind: retune(bank, self._costs[kind], self._say) if kind in self._costs else bank
                for kind, bank in banks.items()
            }
        return self._tuned[suite]

    def _banks(self, task: str) -> dict[str, TreeBank]:
        banks = {kind: load_bank(Path(path)) for kind, path in self.config.banks[task].items()}
        for kind, bank in banks.items():
            bank.check_heads(
                kind=kind,
                num_heads=self.heads[kind].num_heads,
                model_fingerprint=self.backbone.fingerprint,
                heads_fingerprint=self.heads[kind].fingerprint,
            )
        return banks

    def _prompt(
        self,
        unit: Unit,
        prompt: Prompt,
        history: Sequence[Message],
        number: int,
        arms: Sequence[str],
        settings: BenchmarkSettings,
        tools: Toolbox,
    ) -> list[tuple[RequestRow, list[StepRow]]]:
        params = text_params(prompt, settings)
        ids = encode_chat(self.tokenizer, prompt.text, history)
        reference = self._reference(ids, params, tools)
        engines = self._ready(unit.suite, arms, tools, ids, reference, params, f"{settings.seed}-{prompt.id}")
        finished: list[tuple[TimedRequest, Completion]] = []
        # Rotating, so that each arm comes early and late; from an order of the prompt's own, so that none always
        # follows the same other.
        order_of_prompt = random.Random(f"{settings.seed}-{prompt.id}").sample(arms, len(arms))
        for repetition in range(settings.repetitions):
            shift = (number * settings.repetitions + repetition) % len(arms)
            for order, arm in enumerate([*order_of_prompt[shift:], *order_of_prompt[:shift]]):
                completion = engines.complete(arm, ids, params_of(arm, params))
                finished.append((TimedRequest(unit, prompt, arm, repetition, order), completion))
        # After the last measured run: running an answer's code or the model would disturb the run that follows.
        likelihood, results = TextLikelihood(self.model, ids), []
        for timed_request, completion in finished:
            text = self._text(prompt.suite, completion)
            row = request_row(timed_request, len(ids), completion, text, reference, likelihood(completion.tokens))
            results.append((row, step_rows(row, completion)))
        return results

    def _ready(
        self,
        suite: str,
        arms: Sequence[str],
        tools: Toolbox,
        ids: list[int],
        reference: Reference,
        params: SamplingParams,
        seed: str,
    ) -> ArmEngines:
        """The suite's engines with their policies for the prompt, warmed up by what will be timed."""
        foresight = None
        if any(map(needs_foresight, arms)):
            assert reference.trace is not None
            whole = params.model_copy(update={"max_tokens": len(reference.tokens)})
            dynamic_run = complete(make_engine("entmtp-dynamic", tools), ids, whole)
            foresight = Foresight(reference.trace, dynamic_run, seed)
        engines = self._engines_of(suite, arms, tools, len(ids) + params.max_tokens)
        engines.begin(foresight)
        began = time.perf_counter()
        few = params.model_copy(update={"max_tokens": min(8, len(reference.tokens))})
        for arm in arms:
            if engines.captures_steps(arm):
                engines.warm_up(arm, ids, params_of(arm, params))
            elif (suite, arm) not in self._warm:
                engines.complete(arm, ids, params_of(arm, few))
                self._warm.add((suite, arm))
        self._warm_up_seconds += time.perf_counter() - began
        return engines

    def _engines_of(self, suite: str, arms: Sequence[str], tools: Toolbox, tokens: int) -> ArmEngines:
        tokens = min(tokens, self.backbone.max_context)
        if self._engines is None or not self._engines.fits(suite, arms, tokens):
            self._release_engines()
            self._engines = ArmEngines(suite, arms, tools, tokens)
        return self._engines

    def _release_engines(self) -> None:
        """Frees their memory, before that of others is taken."""
        self._engines = None
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    def _reference(self, ids: list[int], params: SamplingParams, tools: Toolbox) -> Reference:
        drawn = params.temperature > 0
        if drawn:
            plain = params_of("autoregressive", params)
            tokens = complete(make_engine("autoregressive", tools), ids, plain).tokens
        else:
            tokens = greedy_tokens(self.model, ids, params.max_tokens)
            if tools.tokenizer is not None:
                tokens = truncate_at_stop(tokens, tools.tokenizer, params.stop)
        return make_reference(
            self.backbone, self.heads.get(heads_of(methods.BANK_ORACLE, self.heads)), ids, tokens, drawn
        )

    def _text(self, suite: str, done: Completion) -> str:
        # An engine leaves it empty that has no stop texts to look for.
        if get_suite(suite).protocol.stop:
            return done.text
        return str(self.tokenizer.decode(done.tokens, skip_special_tokens=True))


def text_params(prompt: Prompt, settings: BenchmarkSettings) -> SamplingParams:
    """How the text behind a prompt is written, by every arm and in every repetition: the seed is the prompt's own."""
    protocol = get_suite(prompt.suite).protocol
    return SamplingParams(
        max_tokens=protocol.token_budget(settings.max_new_tokens),
        temperature=settings.temperature,
        acceptance=settings.acceptance,
        stop=list(protocol.stop),
        seed=random.Random(f"{settings.seed}-{prompt.id}").getrandbits(63),
    )
