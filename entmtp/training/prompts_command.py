"""``entmtp prompts``: training prompts without any benchmark prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from entmtp.errors import EntMTPError
from entmtp.files import write_text
from entmtp.json_lines import check_file
from entmtp.settings import PromptMixSettings
from entmtp.suites import FAMILIES, PAPER_SUITES, load_suite, suite_names
from entmtp.suites.overlap import find_overlaps
from entmtp.training.prompts import mixed_prompts


def write_training_prompts(sharegpt: Path, output: Path, data: Sequence[str]) -> int:
    """Writes the mix of training prompts as JSON lines; returns their number.

    Prompts that overlap with a suite are dropped. Suites are read from ``data`` (``SUITE=FILE``), a package or the hub.

    Raises:
        EntMTPError: if the ShareGPT file or one of ``data`` can't be used.
    """
    check_file(sharegpt, "sharegpt:", "a ShareGPT JSON file")
    files: dict[str, str] = {}
    for text in data:
        name, equals, path = text.partition("=")
        if not equals:
            raise EntMTPError(f"data: '{text}' is not SUITE=FILE with SUITE one of {', '.join(FAMILIES)}")
        files |= dict.fromkeys(suite_names([name]), path)
    suites = [load_suite(name, files.get(name)) for name in dict.fromkeys([*PAPER_SUITES, *files])]

    def without_benchmarks(prompts: Sequence[str]) -> list[str]:
        dropped = {overlap.text_index for overlap in find_overlaps(prompts, suites)}
        return [prompt for number, prompt in enumerate(prompts) if number not in dropped]

    mixed = mixed_prompts(sharegpt, without_benchmarks, PromptMixSettings())
    write_text(output, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in mixed))
    return len(mixed)
