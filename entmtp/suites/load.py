"""Loading of a suite's prompts from a file, an installed package, the hub, or the project's own sample."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from entmtp.errors import EntMTPError
from entmtp.json_lines import Located
from entmtp.prompt_hash import text_key
from entmtp.suites.base import Prompt, Source, Suite, SuiteData, fingerprint
from entmtp.suites.files import read_rows
from entmtp.suites.hub import HubUnavailableError, hub_rows
from entmtp.suites.splits import draw

SAMPLES = Path(__file__).parent / "samples"

logger = logging.getLogger(__name__)


def load(suite: Suite[Any], data_file: Path | None, limit: int | None, seed: int) -> SuiteData:
    """Read the suite's prompts from the first source that has them and sample `limit` of them.

    Raises:
        EntMTPError: `limit` is below 1, the file is unusable, or a row does not fit the suite's schema.
    """
    if limit is not None and limit < 1:
        raise EntMTPError(f"limit {limit} for suite {suite.name} is below 1; give a positive number of prompts")
    source, origin, rows = _open(suite, data_file)
    prompts = _prompts(suite, rows, origin)
    if limit is not None:
        prompts = draw(prompts, limit, seed)
    return SuiteData(suite.name, prompts, source, origin, fingerprint(prompts))


def _open(suite: Suite[Any], data_file: Path | None) -> tuple[Source, str, Iterator[Located]]:
    columns = frozenset(suite.row_type.model_fields)
    if data_file is not None:
        return "file", str(data_file), read_rows(data_file, columns)
    if suite.hub is None:
        raise _no_prompts(suite, "comes with no prompts")
    package = suite.package_rows()
    if package is not None:
        name, rows = package
        return "package", name, _located(name, rows)
    origin = str(suite.hub)
    try:
        return "hub", origin, _located(origin, hub_rows(suite.hub, columns))
    except HubUnavailableError as error:
        if not (sample := SAMPLES / f"{suite.family}.jsonl").is_file():
            raise _no_prompts(suite, f"finds no prompts ({error})") from error
        logger.warning("%s: %s; using the project's own sample instead", suite.name, error)
    return "sample", f"EntMTP's own sample {sample.name}", read_rows(sample, columns)


def _no_prompts(suite: Suite[Any], why: str) -> EntMTPError:
    return EntMTPError(
        f"suite {suite.name} {why}: its file must be given (for a benchmark by --data"
        f" {suite.family}=FILE): {suite.file}"
    )


def _located(origin: str, rows: Iterable[Any]) -> Iterator[Located]:
    for number, row in enumerate(rows, start=1):
        yield f"{origin}, row {number}", row


def _prompts(suite: Suite[Any], rows: Iterator[Located], origin: str) -> tuple[Prompt, ...]:
    """Validate every row and make its prompts; rows without a usable or new prompt are dropped, with a log line."""
    prompts: dict[tuple[Any, str], Prompt] = {}
    ids: set[str] = set()
    count = unused = 0
    for number, (where, row) in enumerate(rows):
        count += 1
        found = suite.prompts(_validate(suite, where, row), number)
        new = [prompt for prompt in found if (prompt.history, text_key(prompt.text)) not in prompts]
        unused += not new
        for prompt in found:
            if prompt.id in ids:
                raise EntMTPError(f"{where}: id {prompt.id!r} appears twice; give every row its own id")
            ids.add(prompt.id)
        for prompt in new:
            prompts.setdefault((prompt.history, text_key(prompt.text)), prompt)
    if not prompts:
        raise EntMTPError(f"{origin}: no usable prompt in {count} rows; suite {suite.name} needs at least one")
    if unused:
        logger.info("%s: %d of %d rows left out (no usable or a repeated prompt)", origin, unused, count)
    return tuple(prompts.values())


def _validate(suite: Suite[Any], where: str, row: Any) -> BaseModel:
    if not isinstance(row, dict):
        raise EntMTPError(f"{where}: expected an object, not {type(row).__name__}; {suite.row_requirement}")
    try:
        return suite.row_type.model_validate(row, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        column = ".".join(str(part) for part in first["loc"])
        if not column:
            raise EntMTPError(
                f"{where}: {first['msg'].removeprefix('Value error, ')}; {suite.row_requirement}"
            ) from error
        if first["type"] == "missing":
            raise EntMTPError(f"{where}: column {column!r} is missing; {suite.row_requirement}") from error
        raise EntMTPError(f"{where}: column {column!r} is wrong: {first['msg']}; {suite.row_requirement}") from error
