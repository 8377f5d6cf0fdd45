"""Rows of a benchmark: one per request and one per step, as Parquet parts.

A unit of the benchmark becomes two files in the parts folder, `requests-<key>.parquet` and `steps-<key>.parquet`. The
requests file is written last and each file appears whole. So a unit is finished exactly when its requests file exists.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from entmtp.errors import EntMTPError
from entmtp.evaluation.results.storage import Store

Source = Literal["hub", "file", "package", "sample"]

_METADATA_KEY = b"entmtp"
_REQUESTS, _STEPS, _PARQUET = "requests-", "steps-", ".parquet"
_READERS = 16  # files read at once: in an object store most of the time is waiting
_ARROW_TYPES: Mapping[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    bool: pa.bool_(),
    float: pa.float64(),
    list[int]: pa.list_(pa.int64()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """One request: one arm's text for one prompt. Times are seconds; tau is `new_tokens / steps`, root included."""

    suite: str
    source: Source
    arm: str
    prompt_id: str
    repetition: int
    order: int  # the arm's index in the rotation of this prompt and repetition
    prompt_tokens: int
    new_tokens: int
    steps: int
    drafted: int  # tree nodes over all steps
    captures: int  # parts of its steps that were captured as CUDA graphs while it was timed
    unsettled_steps: int  # steps with a part that was captured or ran for the first time
    seconds: float  # the whole request, prefill included
    prefill_seconds: float
    draft_seconds: float
    verify_seconds: float
    accept_seconds: float
    policy_seconds: float
    identical: bool  # the same tokens as the autoregressive arm
    first_difference: int  # index of the first differing token, -1 when identical
    tie_margin: float  # top-2 logit margin of the plain run at that index, nan when identical
    score: float | None  # the suite's own score, none where the suite has none
    log_likelihood: float  # nats per token of the text, by `likelihood.TextLikelihood`
    text: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One step: draft, verify and accept (with the cache's compaction). Times are milliseconds, entropy is in nats."""

    suite: str
    arm: str
    prompt_id: str
    repetition: int
    step: int
    position: int  # tokens generated before this step
    tree: str  # the topology's name
    nodes: int
    depth: int
    accepted: int  # tokens gained, the root included
    entropy: float
    entropy_ema: float
    draft_ms: float
    verify_ms: float
    accept_ms: float
    policy_ms: float
    accepted_path: list[int]  # child ranks of the accepted path


def _schema(row_type: type[RequestRow] | type[StepRow]) -> pa.Schema:
    """The Arrow schema of a row type; only fields typed `| None` may be null."""
    fields = []
    for name, hint in get_type_hints(row_type).items():
        options = get_args(hint)
        if get_origin(hint) is Literal:
            hint = str
        nullable = type(None) in options
        if nullable:
            hint = next(option for option in options if option is not type(None))
        fields.append(pa.field(name, _ARROW_TYPES[hint], nullable=nullable))
    return pa.schema(fields)


REQUEST_SCHEMA = _schema(RequestRow)
STEP_SCHEMA = _schema(StepRow)


def part_files(key: str) -> tuple[str, str]:
    """Names of the requests and the steps file of the unit `key`."""
    return f"{_REQUESTS}{key}{_PARQUET}", f"{_STEPS}{key}{_PARQUET}"


def finished_keys(parts: Store) -> set[str]:
    """Keys of the finished units in the folder of parts."""
    names = [name for name in parts.names() if name.startswith(_REQUESTS) and name.endswith(_PARQUET)]
    return {name.removeprefix(_REQUESTS).removesuffix(_PARQUET) for name in names}


def write_part(parts: Store, key: str, requests: pa.Table, steps: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write the rows (:func:`tables_of`) of the unit `key`. `metadata`, any JSON value, goes into both files."""
    requests_file, steps_file = part_files(key)
    parts.write(steps_file, _as_parquet(steps, metadata))
    parts.write(requests_file, _as_parquet(requests, metadata))


def read_parts(parts: Store, keys: Collection[str] | None = None) -> tuple[pa.Table, pa.Table]:
    """Finished units of a folder as (requests, steps), in an order that does not depend on how they were run.

    Args:
        keys: of the units to read; all of them without it.

    Raises:
        EntMTPError: the folder has no finished unit, or a file is not a part of this version.
    """
    finished = finished_keys(parts)
    wanted = sorted(finished if keys is None else keys)
    if missing := [key for key in wanted if key not in finished]:
        raise EntMTPError(
            f"results folder '{parts}' lacks {part_files(missing[0])[0]}; run the benchmark again to finish it"
        )
    if not wanted:
        raise EntMTPError(f"results folder '{parts}' holds no finished part; run the benchmark into it first")
    files = [part_files(key) for key in wanted]
    with ThreadPoolExecutor(_READERS) as readers:
        requests = pa.concat_tables(readers.map(partial(_read, parts, REQUEST_SCHEMA), [one for one, _ in files]))
        steps = pa.concat_tables(readers.map(partial(_read, parts, STEP_SCHEMA), [other for _, other in files]))
    key = [(name, "ascending") for name in ("suite", "arm", "prompt_id", "repetition")]
    return requests.sort_by(key), steps.sort_by([*key, ("step", "ascending")])


def read_requests(folder: Store, name: str) -> pa.Table:
    """Request rows of one file of a parts or report folder.

    Raises:
        EntMTPError: the file can't be read, or has other columns.
    """
    return _read(folder, REQUEST_SCHEMA, name)


def read_metadata(parts: Store, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Metadata of each of these finished units.

    Raises:
        EntMTPError: a unit's part can't be read.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(partial(_read_metadata, parts), keys))


def as_table(rows: Sequence[RequestRow] | Sequence[StepRow], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table of `schema`."""
    # Column by column: a dictionary for each row would take a driver of many workers most of its time.
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def tables_of(requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> tuple[pa.Table, pa.Table]:
    """Rows of both kinds as Arrow tables."""
    return as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA)


def _as_parquet(table: pa.Table, metadata: Mapping[str, Any]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata).encode()}), sink)
    return sink.getvalue()


def _read_metadata(parts: Store, key: str) -> dict[str, Any]:
    name = part_files(key)[0]
    try:
        with parts.open(name) as file:
            file_metadata = pq.read_schema(file).metadata or {}
        metadata: dict[str, Any] = json.loads(file_metadata.get(_METADATA_KEY, b"{}"))
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise _unreadable(parts, name, error) from error
    return metadata


def _read(parts: Store, schema: pa.Schema, name: str) -> pa.Table:
    try:
        with parts.open(name) as file:
            table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(parts, name, error) from error
    missing = [column for column in schema.names if column not in table.column_names]
    if missing:
        raise EntMTPError(
            f"part '{parts}/{name}' has no column '{missing[0]}'; another version wrote it: delete it and run again"
        )
    try:
        return table.select(schema.names).cast(schema).replace_schema_metadata(None)
    except (ValueError, pa.ArrowException) as error:
        raise EntMTPError(
            f"part '{parts}/{name}' holds other values ({_first_line(error)}); delete it and run again"
        ) from error


def _unreadable(parts: Store, name: str, error: Exception) -> EntMTPError:
    return EntMTPError(f"part '{parts}/{name}' cannot be read ({_first_line(error)}); delete it and run again")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
