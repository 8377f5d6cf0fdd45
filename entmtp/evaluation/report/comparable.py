"""Checks that runs are comparable, and notes for the reader of their comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.by_prompt import Prompts
from entmtp.evaluation.analysis.summary import SAMPLE
from entmtp.evaluation.report.load_run import LoadedRun

Key = tuple[str, str]  # suite, arm
PromptsByRun = Mapping[str, Mapping[Key, Prompts]]  # by the run's name

_LENGTH, _REPETITIONS = "settings.max_new_tokens", "settings.repetitions"


def check_comparable(runs: Sequence[LoadedRun], by_run: PromptsByRun) -> None:
    """Raise EntMTPError where a run has another text length, or other prompts, than the first."""
    _check_lengths(runs)
    first, *others = by_run
    for name in others:
        _check_prompts(first, by_run[first], name, by_run[name])


def _check_lengths(runs: Sequence[LoadedRun]) -> None:
    lengths = {run.name: run.provenance.get(_LENGTH) for run in runs}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        described = ", ".join(f"{name} {length or 'unknown'}" for name, length in lengths.items())
        raise EntMTPError(f"max_new_tokens: the runs wrote texts of other lengths ({described}); run all with the same")


def _check_prompts(first: str, ours: Mapping[Key, Prompts], name: str, theirs: Mapping[Key, Prompts]) -> None:
    """Raise EntMTPError for prompts of one name that differ, as prompts are named by their index in their source."""
    for suite, arm in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[suite, arm], theirs[suite, arm]
        for prompt in sorted(mine.keys() & other.keys()):
            for field, words in {"source": "source", "prompt_tokens": "number of tokens"}.items():
                here, there = mine[prompt][0][field], other[prompt][0][field]
                if here != there:
                    raise EntMTPError(
                        f"suite {suite}: prompt '{prompt}' is not the same in both runs, its {words} is {here} in"
                        f" {first} and {there} in {name}; run both with the same --data and model"
                    )


def differences(runs: Sequence[LoadedRun]) -> dict[str, list[str]]:
    """Provenance that differs between the runs: by name, its values in the order of the runs."""
    names = dict.fromkeys(name for run in runs for name in run.provenance)
    values = {name: [run.provenance.get(name, "–") for run in runs] for name in names}
    return {name: of_runs for name, of_runs in values.items() if len(set(of_runs)) > 1}


def notes(runs: Sequence[LoadedRun]) -> list[str]:
    """Notes on what weakens the comparison as a whole."""
    sentences = [
        "The runs are not paired in time: a ratio between them includes everything in which they differ (machine, load,"
        " clock, versions), unlike speedups inside one run."
    ]
    if any(run.provenance.get(_REPETITIONS) == "1" for run in runs):
        sentences.append("Some runs have a single repetition: their times carry the machine's noise.")
    rows = pa.concat_tables([run.requests.select(["suite", "source"]) for run in runs]).to_pylist()
    suites = sorted({row["suite"] for row in rows})
    if samples := [suite for suite in suites if {"suite": suite, "source": SAMPLE} in rows]:
        sentences.append(f"{', '.join(samples)}: prompts are this project's own small sample of the kind.")
    if other := [suite for suite in suites if len({run.provenance.get(f"prompts.{suite}") for run in runs}) > 1]:
        sentences.append(
            f"{', '.join(other)}: not all runs have the same prompts; those of the same name are compared."
        )
    return sentences


def omissions(by_run: PromptsByRun) -> list[str]:
    """Notes on arms and prompts that not all runs have."""
    first, *others = by_run
    sentences = []
    for name in others:
        for one, other in ((first, name), (name, first)):
            if alone := by_run[one].keys() - by_run[other].keys():
                named = ", ".join(sorted(f"{arm} on {suite}" for suite, arm in alone))
                sentences.append(f"Not compared, for {one} has it and {other} has not: {named}.")
    for suite in dict.fromkeys(suite for suite, _ in by_run[first]):
        sentences += _omitted_prompts(suite, by_run)
    return sentences


def _omitted_prompts(suite: str, by_run: PromptsByRun) -> list[str]:
    prompts_of = {
        name: {prompt for key, prompts in arms.items() if key[0] == suite for prompt in prompts}
        for name, arms in by_run.items()
    }
    having = {name: prompts for name, prompts in prompts_of.items() if prompts}
    shared = set.intersection(*having.values())
    alone = [f"{len(prompts - shared)} of {name}" for name, prompts in having.items() if prompts - shared]
    if not alone:
        return []
    return [f"{suite}: prompts that not all runs have are left out, {' and '.join(alone)}; {len(shared)} are compared."]
