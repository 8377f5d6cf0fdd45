#!/usr/bin/env python3
"""Rate of greedy tokens that differ between decoding with trees and plain decoding on the same kernels and type.

Lossy kernels are compared with the model's own text as well.

    python -m benchmarks.identity                                          # every choice that this machine has
    python -m benchmarks.identity --case fused:float32 --case eager:bfloat16
    python -m benchmarks.identity --shape vicuna-7b --case eager:bfloat16  # on a GPU: random weights

Plain decoding writes a text, and each method writes it too. Where its token is another, that counts as one, and it
goes on from plain decoding's tokens, this one included. So every token is compared after the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from rich.progress import track

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from benchmarks.lib.shapes import SHAPES, random_heads, random_model, shape_of
from benchmarks.step import TYPES
from benchmarks.undrafted import PLAIN, engine_of
from entmtp.cli_errors import plain_errors
from entmtp.decoding.engine import Engine
from entmtp.decoding.measure_cost import sized_tree
from entmtp.decoding.outputs import Completion, TokenLogprobs
from entmtp.errors import EntMTPError
from entmtp.evaluation.run.arms import Toolbox, make_policy
from entmtp.intervals import Estimate, interval, proportion
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.choices import CHOICES, parse_kernels
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.static import StaticPolicy
from entmtp.policies.step_cost import hardware_name
from entmtp.settings import CalibrationSettings, EngineSettings, Kernels, SamplingParams
from entmtp.suites import PAPER_SUITES, scored_prompts
from entmtp.trees.topology import Topology

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METHODS = ("entmtp-dynamic", "hydra")
TREES = (3, 15, 63)
COLUMNS = ["kernels", "type", "method", "nodes", "same texts", "tokens", "differing", "rate", "gap, nats"]
ROUNDED = "autoregressive, rounded"
NOTES = (
    "differing: tokens other than plain decoding's after the same tokens, on the same kernels in the same type. same"
    " texts: answers without one. nodes: of a tree, the mean over steps. gap: the widest between the log-probabilities"
    " of plain decoding's two likeliest tokens, where one differed.",
    "Intervals are 95%, Korn and Graubard's: Clopper and Pearson's, where differences that come together in one text"
    " count as fewer. Where nothing differs each token counts by itself.",
)
_PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Case:
    """Kernels, and the type in which the model is loaded."""

    kernels: Kernels
    dtype: str

    @classmethod
    def of(cls, text: str) -> Case:
        """From KERNELS:TYPE.

        Raises:
            EntMTPError: if one of them is unknown.
        """
        kernels, _, dtype = text.partition(":")
        if dtype not in TYPES:
            raise EntMTPError(f"case: '{text}' has no known type; give KERNELS:TYPE, such as eager:bfloat16")
        return cls(parse_kernels(kernels), dtype)


@dataclass(frozen=True)
class Compared:
    """One method's answers to one case's prompts.

    Attributes:
        counts, differing: tokens per text, and those of them that differ ``[texts]``.
        gap: the widest between the two likeliest tokens where one differs, in nats; None if none does.
        nodes: of its trees, the mean over steps.
    """

    counts: list[int]
    differing: list[int]
    gap: float | None
    nodes: float


def main(
    cases: Annotated[
        list[str] | None, typer.Option("--case", help="KERNELS:TYPE; may repeat; else all that run here")
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help=f"may repeat; else {', '.join(METHODS)}")
    ] = None,
    shape: Annotated[str | None, typer.Option(help=f"random weights instead: {', '.join(SHAPES)}")] = None,
    prompts: Annotated[int, typer.Option(min=1, help="of each suite; a shape gets as many altogether")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="of each answer, at most")] = 100,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Count the tokens that trees change, for each choice of kernels and type."""
    with plain_errors("identity", interrupted="nothing was recorded"):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        chosen = [Case.of(text) for text in cases] if cases else list(available_cases(device))
        rows: list[list[Cell]] = []
        lossy: list[list[Cell]] = []
        refused: list[str] = []
        for case in chosen:
            try:
                engines, ids = subject(case, device, methods or METHODS, shape, prompts)
            except EntMTPError as refusal:
                refused.append(f"{case.kernels}:{case.dtype} does not run here. {refusal}.")
                continue
            title = f"{case.kernels}:{case.dtype}"
            rows += [row(case, name, found) for name, found in compare(engines, ids, tokens, title).items()]
            if CHOICES[case.kernels].digits and shape is None:
                pair = {PLAIN: _plain(_unrounded(case, device)), ROUNDED: engines[PLAIN]}
                lossy += [row(case, name, found) for name, found in compare(pair, ids, tokens, title).items()]
        if not rows:
            raise EntMTPError(f"case: none runs here; {' '.join(refused)}")
        tables = [Table(title="Greedy tokens that trees change", columns=COLUMNS, rows=rows)]
        if lossy:
            tables.append(Table(title="Greedy tokens that lossy kernels change", columns=COLUMNS, rows=lossy))
        title = f"Identity with plain decoding: {shape or 'bundled'} model"
        made = make_record("identity", title, hardware_name(device), tables, [*NOTES, *refused])
        deliver(made, record, uncommitted)


def available_cases(device: torch.device) -> Iterator[Case]:
    """Every choice of kernels with every type that it takes on this device."""
    for name, choice in CHOICES.items():
        for dtype, kind in TYPES.items():
            if not choice.is_interpreted(device) and choice.unsupported_reason(kind, device) is None:
                yield Case(name, dtype)


def subject(
    case: Case, device: torch.device, methods: Sequence[str], shape: str | None, prompts: int
) -> tuple[dict[str, Engine], list[list[int]]]:
    """Engines of one model by their names, plain decoding first, and prompts for them.

    Raises:
        EntMTPError: if the model is refused in this case.
    """
    if shape is not None:
        return _random_subject(case, device, shape, prompts)
    model, tokenizer = _bundled(case.dtype, device)
    backbone = build_backbone(model, case.kernels)
    engines = {PLAIN: _plain(backbone)} | {name: engine_of(name, backbone) for name in methods}
    texts = [one.text for name in PAPER_SUITES for one in scored_prompts(name, prompts)]
    return engines, [encode_chat(tokenizer, text) for text in texts]


def _unrounded(case: Case, device: torch.device) -> Backbone:
    """The bundled model on the fastest kernels that write its own text."""
    model, _ = _bundled(case.dtype, device)
    return build_backbone(model)


@lru_cache(maxsize=1)
def _bundled(dtype: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The bundled model and its tokenizer. Cases of one type share them, since no backbone changes its model."""
    return load_model("bundled", dtype=dtype, device=str(device))


def _random_subject(
    case: Case, device: torch.device, name: str, prompts: int
) -> tuple[dict[str, Engine], list[list[int]]]:
    """Trees of fixed sizes: no bank tells which ones random heads deserve."""
    shape = shape_of(name)
    backbone = build_backbone(random_model(shape, device, TYPES[case.dtype]), case.kernels)
    heads = random_heads(shape, "hydra", backbone)
    trees = {nodes: sized_tree(nodes, heads.num_heads) for nodes in TREES}
    engines = {
        f"{nodes} nodes": Engine(backbone, heads, _constant(tree), EngineSettings.for_one())
        for nodes, tree in trees.items()
    }
    drawn = np.random.default_rng(0).integers(shape.vocab, size=(prompts * len(PAPER_SUITES), _PROMPT_TOKENS))
    return {PLAIN: _plain(backbone)} | engines, drawn.tolist()


def _plain(backbone: Backbone) -> Engine:
    return Engine(backbone, None, make_policy(PLAIN, Toolbox(backbone, {}, {}, {})), EngineSettings.for_one())


def _constant(tree: Topology) -> StaticPolicy:
    return StaticPolicy(tree, CalibrationSettings().entropy_window)


def compare(
    engines: Mapping[str, Engine], prompts: Sequence[Sequence[int]], tokens: int, title: str
) -> dict[str, Compared]:
    """Differences of each engine's greedy tokens from those of plain decoding, which is one of them."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, logprobs=2)
    texts = [_answer(engines[PLAIN], prompt, params) for prompt in track(prompts, f"{title} {PLAIN}")]
    drafting = {name: engine for name, engine in engines.items() if name != PLAIN}
    return {name: _compared(engine, prompts, texts, f"{title} {name}") for name, engine in drafting.items()}


def _answer(engine: Engine, prompt: Sequence[int], params: SamplingParams) -> Completion:
    done = Completion()
    for _ in engine.stream(prompt, params, done):
        pass
    return done


def _compared(engine: Engine, prompts: Sequence[Sequence[int]], texts: Sequence[Completion], title: str) -> Compared:
    nodes: list[int] = []

    def write(prompt: list[int], count: int) -> list[int]:
        done = engine.generate(prompt, count)
        nodes.extend(step.topology.nodes for step in done.steps)
        return done.tokens

    pairs = track(list(zip(prompts, texts)), title)
    differs = [differing(write, prompt, text.tokens) for prompt, text in pairs]
    gaps = [_gap(text.logprobs[at]) for text, positions in zip(texts, differs) for at in positions]
    counts = [len(text.tokens) for text in texts]
    return Compared(counts, [len(positions) for positions in differs], max(gaps, default=None), float(np.mean(nodes)))


def differing(
    write: Callable[[list[int], int], Sequence[int]], prompt: Sequence[int], text: Sequence[int]
) -> list[int]:
    """Positions where ``write(prompt, count)`` has another token than ``text``, each after the same tokens."""
    found, at = [], 0
    while at < len(text):
        written = write([*prompt, *text[:at]], len(text) - at)
        at += next((same for same, pair in enumerate(zip(written, text[at:])) if pair[0] != pair[1]), len(written))
        if at < len(text):
            found.append(at)
            at += 1
    return found


def _gap(position: TokenLogprobs) -> float:
    (_, first), (_, second) = position.top
    return first - second


def row(case: Case, method: str, found: Compared) -> list[Cell]:
    """Cells under :data:`COLUMNS`."""
    counts, differs = np.array(found.counts, dtype=float), np.array(found.differing, dtype=float)
    texts = proportion((differs == 0).astype(float), np.ones(len(differs)))
    return [
        case.kernels,
        case.dtype,
        method,
        f"{found.nodes:.1f}",
        f"{(differs == 0).sum()} of {len(differs)}, {_percent(texts, 0)}",
        int(counts.sum()),
        int(differs.sum()),
        _percent(proportion(differs, counts), 2),
        "" if found.gap is None else f"{found.gap:.2g}",
    ]


def _percent(share: Estimate, digits: int) -> str:
    low, high = (None if bound is None else 100 * bound for bound in (share.low, share.high))
    return f"{100 * share.value:.{digits}f}% {interval(Estimate(100 * share.value, low, high), digits, '%')}"


if __name__ == "__main__":
    typer.run(main)
