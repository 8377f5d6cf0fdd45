"""Whether finished runs did the same work, and what a reader of their comparison must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.by_prompt import Prompts
from entmtp.evaluation.analysis.summary import SAMPLE
from entmtp.evaluation.report.load_run import LoadedRun

Key = tuple[str, str]  # suite, arm
Held = Mapping[str, Mapping[Key, Prompts]]  # by the run's name

_LENGTH, _REPETITIONS = "settings.max_new_tokens", "settings.repetitions"


def refuse_other_work(runs: Sequence[LoadedRun], held: Held) -> None:
    """Raises EntMTPError where a run wrote texts of another length, or for other prompts, than the first."""
    _refuse_other_lengths(runs)
    first, *others = held
    for name in others:
        _refuse_other_prompts(first, held[first], name, held[name])


def _refuse_other_lengths(runs: Sequence[LoadedRun]) -> None:
    lengths = {run.name: run.provenance.get(_LENGTH) for run in runs}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length or 'unknown'}" for name, length in lengths.items())
        raise EntMTPError(f"max_new_tokens: the runs wrote texts of other lengths ({told}); run all with the same")


def _refuse_other_prompts(first: str, ours: Mapping[Key, Prompts], name: str, theirs: Mapping[Key, Prompts]) -> None:
    """Prompts are named by their place in their source: another source has others of the same name."""
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
    """Facts that are not the same in all runs, by name, in the order of the runs."""
    names = dict.fromkeys(name for run in runs for name in run.provenance)
    values = {name: [run.provenance.get(name, "–") for run in runs] for name in names}
    return {name: held for name, held in values.items() if len(set(held)) > 1}


def notes(runs: Sequence[LoadedRun]) -> list[str]:
    """What weakens the comparison as a whole."""
    told = [
        "The runs are not paired in time: a ratio between them holds everything in which they differ (machine, load,"
        " clock, versions), unlike speedups inside one run."
    ]
    if any(run.provenance.get(_REPETITIONS) == "1" for run in runs):
        told.append("Some runs have a single repetition: their times carry the machine's noise.")
    rows = pa.concat_tables([run.requests.select(["suite", "source"]) for run in runs]).to_pylist()
    suites = sorted({row["suite"] for row in rows})
    if samples := [suite for suite in suites if {"suite": suite, "source": SAMPLE} in rows]:
        told.append(f"{', '.join(samples)}: prompts are this project's own small sample of the kind.")
    if other := [suite for suite in suites if len({run.provenance.get(f"prompts.{suite}") for run in runs}) > 1]:
        told.append(f"{', '.join(other)}: not all runs have the same prompts; those of the same name are compared.")
    return told


def left_out(held: Held) -> list[str]:
    """Arms and prompts that not all runs have."""
    first, *others = held
    told = []
    for name in others:
        for one, other in ((first, name), (name, first)):
            if alone := held[one].keys() - held[other].keys():
                named = ", ".join(sorted(f"{arm} on {suite}" for suite, arm in alone))
                told.append(f"Not compared, for {one} has it and {other} has not: {named}.")
    for suite in dict.fromkeys(suite for suite, _ in held[first]):
        told += _prompts_left_out(suite, held)
    return told


def _prompts_left_out(suite: str, held: Held) -> list[str]:
    asked = {
        name: {prompt for key, prompts in arms.items() if key[0] == suite for prompt in prompts}
        for name, arms in held.items()
    }
    having = {name: prompts for name, prompts in asked.items() if prompts}
    shared = set.intersection(*having.values())
    alone = [f"{len(prompts - shared)} of {name}" for name, prompts in having.items() if prompts - shared]
    if not alone:
        return []
    return [f"{suite}: prompts that not all runs have are left out, {' and '.join(alone)}; {len(shared)} are compared."]
