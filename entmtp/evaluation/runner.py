"""Runs units of the benchmark on one device: every arm on every prompt, in rotating order, several times over.

The reference of every request is the model's own ``generate``. Its text gives the rank trace from which the controls
know a prompt beforehand; that pass, and a first untimed run of every arm, are not part of any measured time.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from entmtp.decoding.completion import Completion
from entmtp.decoding.engine import Engine
from entmtp.decoding.measure import step_cost
from entmtp.evaluation.arms import NEEDS_HINDSIGHT, TRANSFER, Hindsight, Toolbox, kind_of, make_engine
from entmtp.evaluation.calibration import read_text
from entmtp.evaluation.quality import score
from entmtp.evaluation.rows import RequestRow, StepRow
from entmtp.evaluation.suites import Prompt
from entmtp.evaluation.units import Unit
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.bundled import cache_folder
from entmtp.models.registry import encode_chat, load_model
from entmtp.scheduling.signals import entropy
from entmtp.settings import BenchmarkSettings
from entmtp.trees.bank import MIXED, TreeBank, load_bank
from entmtp.trees.trace import RankTrace, rank_trace


@dataclass(frozen=True)
class Workplace:
    """Where a worker finds its parts.

    Attributes:
        model: a name as for ``--model``.
        heads: folder or hub name by kind.
        banks: bank file by suite (or 'mixed'), then by kind of heads.
        device: 'cpu' or 'cuda'.
        threads: CPU threads of the worker.
    """

    model: str
    heads: Mapping[str, str]
    banks: Mapping[str, Mapping[str, str]]
    device: str
    threads: int


@dataclass(frozen=True)
class Reference:
    """The model's own greedy text for a prompt, by its own ``generate``.

    Attributes:
        tokens: new tokens, the end-of-text token included.
        margins: top-2 logit difference at each of them.
        trace: the rank trace of the text under the heads that the controls draft with; None where they are not loaded.
    """

    tokens: list[int]
    margins: list[float]
    trace: RankTrace | None


class Worker:
    """A loaded model with its heads; runs one unit after another."""

    def __init__(self, place: Workplace, say: Callable[[str], None] = print) -> None:
        torch.set_num_threads(place.threads)
        self.place = place
        # The reference is written by the model as transformers loads it; the backbone works on a copy of its own.
        self.model, self.tokenizer = load_model(place.model, device=place.device)
        self.backbone = Backbone(self.model)
        self.heads: dict[str, DraftHeads] = {
            kind: load_heads(source, self.backbone) for kind, source in place.heads.items()
        }
        self.costs = {kind: step_cost(self.backbone, heads, cache_folder(), say) for kind, heads in self.heads.items()}
        self._warm: set[tuple[str, str]] = set()

    def run(
        self, unit: Unit, arms: Sequence[str], settings: BenchmarkSettings
    ) -> tuple[list[RequestRow], list[StepRow], dict[str, Any]]:
        """Rows of one unit, and what was measured beside them: this process's peak memory in MiB and step costs."""
        tools = self._toolbox(unit.suite, arms)
        requests: list[RequestRow] = []
        steps: list[StepRow] = []
        for number, prompt in enumerate(unit.prompts, start=unit.first):
            for row, its_steps in self._prompt(unit, prompt, number, arms, settings, tools):
                requests.append(row)
                steps += its_steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        costs = {kind: cost.model_dump() for kind, cost in self.costs.items()}
        return requests, steps, {"peak_memory_mib": peak, "costs": costs}

    def _toolbox(self, suite: str, arms: Sequence[str]) -> Toolbox:
        sources = {"entmtp-transfer": TRANSFER[suite], "entmtp-mixed": MIXED}
        foreign = {arm: self._banks(source) for arm, source in sources.items() if arm in arms}
        return Toolbox(self.backbone, self.heads, self._banks(suite), self.costs, foreign)

    def _banks(self, task: str) -> dict[str, TreeBank]:
        banks = {kind: load_bank(Path(path)) for kind, path in self.place.banks[task].items()}
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
        number: int,
        arms: Sequence[str],
        settings: BenchmarkSettings,
        tools: Toolbox,
    ) -> list[tuple[RequestRow, list[StepRow]]]:
        ids = encode_chat(self.tokenizer, prompt.text)
        reference = self._reference(ids, settings.max_new_tokens)
        engines = self._engines(unit.suite, arms, tools, ids, reference, f"{settings.seed}-{prompt.id}")
        results = []
        # Rotating, so that each arm comes early and late; from an order of the prompt's own, so that none always
        # follows the same other.
        order_of_prompt = random.Random(f"{settings.seed}-{prompt.id}").sample(arms, len(arms))
        for repetition in range(settings.repetitions):
            shift = (number * settings.repetitions + repetition) % len(arms)
            for order, arm in enumerate([*order_of_prompt[shift:], *order_of_prompt[:shift]]):
                completion = engines[arm].generate(ids, settings.max_new_tokens)
                row = self._row(unit, prompt, arm, repetition, order, len(ids), completion, reference)
                results.append((row, _step_rows(row, completion)))
        return results

    def _engines(
        self, suite: str, arms: Sequence[str], tools: Toolbox, ids: list[int], reference: Reference, seed: str
    ) -> dict[str, Engine]:
        hindsight = None
        if NEEDS_HINDSIGHT & set(arms):
            assert reference.trace is not None
            dynamic_run = make_engine("entmtp-dynamic", tools).generate(ids, len(reference.tokens))
            hindsight = Hindsight(reference.trace, dynamic_run, seed)
        engines = {arm: make_engine(arm, tools, hindsight) for arm in arms}
        for arm, engine in engines.items():
            if (suite, arm) not in self._warm:
                engine.generate(ids, min(8, len(reference.tokens)))
                self._warm.add((suite, arm))
        return engines

    @torch.inference_mode()
    def _reference(self, ids: list[int], max_new_tokens: int) -> Reference:
        prompt = torch.tensor([ids], device=self.backbone.device)
        # Without a mask generate() guesses one and hides every token of the prompt that is also the padding token.
        text = cast(Any, self.model).generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens, do_sample=False
        )
        tokens = text[0, len(ids) :].tolist()
        cache = self.backbone.new_cache(slots=1, capacity=len(ids) + len(tokens) + 16)
        states = self.backbone.prefill([*ids, *tokens[:-1]], 0, cache)[len(ids) - 1 :]
        logits = self.backbone.logits(states).float()
        top = logits.topk(2, dim=-1).values
        trace = None
        if (heads := self.heads.get(kind_of("oracle", self.heads))) is not None:
            on_device = torch.tensor(tokens, device=self.backbone.device)
            read = read_text(self.backbone, heads, ids, on_device)
            trace = rank_trace(heads, on_device, states, entropy(logits), read)
        return Reference(tokens, (top[:, 0] - top[:, 1]).tolist(), trace)

    def _row(
        self,
        unit: Unit,
        prompt: Prompt,
        arm: str,
        repetition: int,
        order: int,
        prompt_tokens: int,
        done: Completion,
        reference: Reference,
    ) -> RequestRow:
        difference = first_difference(done.tokens, reference.tokens)
        text = str(self.tokenizer.decode(done.tokens, skip_special_tokens=True))
        return RequestRow(
            suite=unit.suite,
            source=unit.source,
            arm=arm,
            prompt_id=prompt.id,
            repetition=repetition,
            order=order,
            prompt_tokens=prompt_tokens,
            new_tokens=len(done.tokens),
            steps=len(done.steps),
            drafted=done.drafted,
            seconds=done.seconds,
            prefill_seconds=done.prefill_seconds,
            draft_seconds=done.part_seconds("draft"),
            verify_seconds=done.part_seconds("verify"),
            accept_seconds=done.part_seconds("accept") + done.part_seconds("compact"),
            policy_seconds=done.part_seconds("policy"),
            identical=difference < 0,
            first_difference=difference,
            tie_margin=float("nan") if difference < 0 else _margin_at(reference, difference),
            score=score(prompt, text),
            text=text,
            token_ids=done.tokens,
        )


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Index of the first differing token (the shorter one's end counts), or -1."""
    for at, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return at
    return -1 if len(ours) == len(theirs) else min(len(ours), len(theirs))


def _margin_at(reference: Reference, position: int) -> float:
    return reference.margins[position] if position < len(reference.margins) else float("nan")


def _step_rows(row: RequestRow, done: Completion) -> list[StepRow]:
    return [
        StepRow(
            suite=row.suite,
            arm=row.arm,
            prompt_id=row.prompt_id,
            repetition=row.repetition,
            step=number,
            position=step.position,
            tree=step.topology.name,
            nodes=step.topology.nodes,
            depth=step.topology.max_depth,
            accepted=min(step.gained, row.new_tokens - step.position),
            entropy=step.signals.entropy,
            entropy_ema=step.signals.entropy_ema,
            draft_ms=step.draft_ms,
            verify_ms=step.verify_ms,
            accept_ms=step.accept_ms + step.compact_ms,
            policy_ms=step.policy_ms,
            accepted_path=list(step.path),
        )
        for number, step in enumerate(done.steps)
    ]
