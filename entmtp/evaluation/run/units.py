"""Units of a benchmark: a few prompts of a suite, named by a hash of everything that the unit's rows depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from entmtp.settings import BenchmarkSettings
from entmtp.suites import Prompt, get_suite, load_suite, split
from entmtp.suites.base import Source
from entmtp.suites.splits import draw


@dataclass(frozen=True)
class Unit:
    """Work that one worker does at a time.

    Attributes:
        key: name of its Parquet part.
        first: index of its first prompt in the suite, from which the arms' rotation continues.
    """

    key: str
    first: int
    suite: str
    source: Source
    prompts: tuple[Prompt, ...]


def make_units(
    suites: Sequence[str],
    data_files: Mapping[str, str],
    arms: Sequence[str],
    settings: BenchmarkSettings,
    identity: Mapping[str, str],
    uncalibrated: Collection[str] = (),
) -> list[Unit]:
    """Cut every suite's scored prompts into units. Suites alternate, so that an interrupted run has some of each.

    Args:
        data_files: by family of suites.
        identity: hashes of what else a row depends on: model, heads, banks.
        uncalibrated: suites of which all prompts are scored, as no bank was made from half of them.
    """
    by_suite = [
        _units_of(suite, data_files.get(get_suite(suite).family), arms, settings, identity, suite in uncalibrated)
        for suite in suites
    ]
    longest = max(len(units) for units in by_suite)
    return [units[index] for index in range(longest) for units in by_suite if index < len(units)]


def _units_of(
    suite: str,
    data_file: str | None,
    arms: Sequence[str],
    settings: BenchmarkSettings,
    identity: Mapping[str, str],
    uncalibrated: bool,
) -> list[Unit]:
    data = load_suite(suite, data_file)
    scored = data.prompts if uncalibrated else split(data.prompts)[1]
    protocol = get_suite(suite).protocol
    # The names of greedy units without stop texts do not depend on these settings.
    drawing = {"temperature": settings.temperature, "acceptance": settings.acceptance} if settings.temperature else {}
    ending = {"stop": protocol.stop} if protocol.stop else {}
    chosen = draw(scored or data.prompts, settings.prompts, settings.seed)
    size = settings.shard_prompts
    units = []
    for begin in range(0, len(chosen), size):
        prompts = tuple(chosen[begin : begin + size])
        depends_on = {
            "suite": suite,
            "source": data.source,
            "arms": list(arms),
            "prompts": [prompt.content for prompt in prompts],
            "tokens": protocol.token_budget(settings.max_new_tokens),
            "repetitions": settings.repetitions,
            "seed": settings.seed,
            **identity,
            **drawing,
            **ending,
        }
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        units.append(Unit(f"{suite}-{begin // size:03d}-{digest[:16]}", begin, suite, data.source, prompts))
    return units
