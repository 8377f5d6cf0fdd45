"""The arms that write the same prompts, and how they take turns."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.lib.comparison import TimedText
from benchmarks.peers.llama_peer import LlamaPeer
from entmtp.decoding.engine import Engine
from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.summarise import TIE_MARGIN
from entmtp.evaluation.analysis.summary import SAMPLE
from entmtp.evaluation.run.reference import first_difference
from entmtp.models.loading.load import encode_chat
from entmtp.suites import PAPER_SUITES, load_suite, split
from entmtp.suites.splits import draw

ENTMTP, DYNAMIC, AUTOREGRESSIVE = "entmtp", "entmtp-dynamic", "autoregressive"
REFERENCE = "generate, dynamic cache"
CACHES = (REFERENCE, "generate, static cache")
LOOKUP = "generate, prompt lookup"
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Written:
    """A text, its seconds with the prompt included, and its steps and tree nodes where the arm tells."""

    tokens: list[int]
    seconds: float
    steps: int | None = None
    drafted: int = 0


Arm = Callable[[list[int], int], Written]
"""Writes that many greedy tokens after a prompt, or fewer where the text ends."""


@dataclass(frozen=True)
class ScoredSuite:
    """A suite's name, how tables call it, and the token ids of its prompts."""

    suite: str
    label: str
    prompts: Sequence[list[int]]


def scored_suites(tokenizer: Any, count: int) -> list[ScoredSuite]:
    """Prompts that no bank was calibrated on."""
    found = []
    for name in PAPER_SUITES:
        suite = load_suite(name)
        ids = [encode_chat(tokenizer, prompt.text) for prompt in draw(split(suite.prompts)[1], count, seed=0)]
        found.append(ScoredSuite(name, f"{name} (sample)" if suite.source == SAMPLE else name, ids))
    return found


def rounded(arm: str) -> str:
    """Name of one of our arms on kernels that round the inputs of products."""
    return f"{arm}, int8"


def own_arm(engine: Engine) -> Arm:
    """One of ours."""

    def write(prompt: list[int], new_tokens: int) -> Written:
        began = time.perf_counter()
        done = engine.generate(prompt, new_tokens)
        return Written(done.tokens, time.perf_counter() - began, len(done.steps), done.drafted)

    return write


def generate_arms(model: Any) -> dict[str, Arm]:
    """``generate`` of the model as transformers loads it."""
    options: dict[str, dict[str, Any]] = {
        REFERENCE: {"cache_implementation": "dynamic"},
        CACHES[1]: {"cache_implementation": "static"},
        LOOKUP: {"prompt_lookup_num_tokens": 10},
    }
    return {name: _generate_arm(model, chosen) for name, chosen in options.items()}


def _generate_arm(model: Any, options: Mapping[str, Any]) -> Arm:
    @torch.inference_mode()
    def write(prompt: list[int], new_tokens: int) -> Written:
        began = time.perf_counter()
        ids = torch.tensor([prompt], device=model.device)
        # Without a mask generate() guesses one and hides every token of the prompt that is also the padding token.
        mask = torch.ones_like(ids)
        text = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, **options)
        return Written(text[0, len(prompt) :].tolist(), time.perf_counter() - began)

    return write


def llama_arm(peer: LlamaPeer) -> Arm:
    """llama.cpp, by its own clock."""
    return lambda prompt, new_tokens: Written(*peer.write(prompt, new_tokens))


class Referee:
    """Compares texts with the reference; arms in ``free`` may write another one.

    Raises:
        EntMTPError: from :meth:`identical`, if another arm's text differs and not at a tie of the two best tokens.
    """

    def __init__(self, model: Any, free: frozenset[str], say: Callable[[str], None]) -> None:
        self._model, self._free, self._say = model, free, say
        self._reported: set[tuple[str, tuple[int, ...]]] = set()

    def identical(self, arm: str, prompt: list[int], reference: list[int], tokens: list[int]) -> bool:
        """Whether the arm wrote the reference's tokens; says so, once, where a tie is why it did not."""
        at = first_difference(tokens, reference)
        if at < 0:
            return True
        if arm not in self._free and (arm, tuple(prompt)) not in self._reported:
            if at >= min(len(tokens), len(reference)) or not self._tie(
                [*prompt, *reference[:at]], {tokens[at], reference[at]}
            ):
                raise EntMTPError(f"{arm}: new token {at} of a prompt differs from generate's, so times do not compare")
            self._reported.add((arm, tuple(prompt)))
            self._say(f"{arm}: one text goes another way at new token {at}, a tie of the two best tokens")
        return False

    @torch.inference_mode()
    def _tie(self, ids: list[int], tokens: set[int]) -> bool:
        logits = self._model(torch.tensor([ids], device=self._model.device)).logits[0, -1].float()
        return bool((logits.max() - logits[list(tokens)] < TIE_MARGIN).all())


def measure(
    suites: Sequence[ScoredSuite],
    arms: Mapping[str, Mapping[str, Arm]],
    max_new_tokens: int,
    repetitions: int,
    referee: Referee,
    advance: Callable[[str], None],
) -> list[TimedText]:
    """Every arm (by suite, then name) on every prompt, in rotating order; each first writes a little untimed.

    The reference is what ``generate`` writes. An arm's time is reported for as many tokens, so that a text that goes
    another way does not change the work compared. ``advance`` hears what was written after each text.
    """
    timed, turns = [], itertools.count()
    for suite in suites:
        names = list(arms[suite.suite])
        for number, prompt in enumerate(suite.prompts):
            reference = arms[suite.suite][REFERENCE](prompt, max_new_tokens).tokens
            for name in names:
                arms[suite.suite][name](prompt, min(WARM_UP_TOKENS, len(reference)))
            for turn in itertools.islice(turns, repetitions):
                shift = turn % len(names)
                for name in [*names[shift:], *names[:shift]]:
                    done = arms[suite.suite][name](prompt, len(reference))
                    same = referee.identical(name, prompt, reference, done.tokens)
                    seconds = done.seconds * len(reference) / len(done.tokens)
                    row = TimedText(suite.label, name, number, len(reference), seconds, same, done.steps, done.drafted)
                    timed.append(row)
                    advance(f"{suite.label}, {name}")
    return timed
