"""What a benchmark writes down: one row per request, one row per step, as Parquet parts.

A shard of the benchmark becomes two files in the parts folder, `requests-<key>.parquet` and `steps-<key>.parquet`. The
requests file is written last and each file appears whole, so a shard is finished exactly when its requests file exists.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from entmtp.errors import EntMTPError
from entmtp.files import write_whole

Source = Literal["hub", "file", "package", "sample"]

_METADATA_KEY = b"entmtp"
_ARROW_TYPES: Mapping[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    bool: pa.bool_(),
    float: pa.float64(),
    list[int]: pa.list_(pa.int64()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """One prompt written by one arm once. Times are seconds; tau is `new_tokens / steps`, the root included."""

    suite: str
    source: Source
    arm: str
    prompt_id: str
    repetition: int
    order: int  # the arm's place in the rotation of this prompt and repetition
    prompt_tokens: int
    new_tokens: int
    steps: int
    drafted: int  # tree nodes over all steps
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
    text: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One draft, verify and accept (the cache's compaction in it). Times are milliseconds, entropy is in nats."""

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


def part_files(path: Path) -> tuple[Path, Path]:
    """The requests and the steps file of the shard `path` = parts folder / key."""
    return path.with_name(f"requests-{path.name}.parquet"), path.with_name(f"steps-{path.name}.parquet")


def part_exists(path: Path) -> bool:
    """Whether the shard `path` = parts folder / key is finished."""
    return part_files(path)[0].exists()


def write_part(
    path: Path, requests: Sequence[RequestRow], steps: Sequence[StepRow], metadata: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write the shard `path` = parts folder / key; `metadata` (anything JSON can hold) goes into both files."""
    requests_file, steps_file = part_files(path)
    _write(steps_file, as_table(steps, STEP_SCHEMA), metadata)
    _write(requests_file, as_table(requests, REQUEST_SCHEMA), metadata)
    return requests_file, steps_file


def read_parts(folder: Path, keys: Collection[str] | None = None) -> tuple[pa.Table, pa.Table]:
    """Finished shards of a folder as (requests, steps), in an order that does not depend on how they were made.

    `keys` names the shards that are wanted; without it, all of them are read.

    Raises:
        EntMTPError: the folder has no finished shard, or a file is not a part of this version.
    """
    requests_files = sorted(folder.glob("requests-*.parquet"))
    if keys is not None:
        requests_files = sorted(part_files(folder / key)[0] for key in keys)
        if missing := [file for file in requests_files if not file.exists()]:
            raise EntMTPError(
                f"results folder '{folder}' lacks {missing[0].name}; run the benchmark again to finish it"
            )
    if not requests_files:
        raise EntMTPError(f"results folder '{folder}' holds no finished part; run the benchmark into it first")
    steps_files = [file.with_name(file.name.replace("requests-", "steps-", 1)) for file in requests_files]
    requests = pa.concat_tables([_read(file, REQUEST_SCHEMA) for file in requests_files])
    steps = pa.concat_tables([_read(file, STEP_SCHEMA) for file in steps_files])
    key = [(name, "ascending") for name in ("suite", "arm", "prompt_id", "repetition")]
    return requests.sort_by(key), steps.sort_by([*key, ("step", "ascending")])


def read_requests(path: Path) -> pa.Table:
    """Request rows of one file, as a part or a report holds them.

    Raises:
        EntMTPError: the file can't be read, or holds other columns.
    """
    return _read(path, REQUEST_SCHEMA)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that the finished shard `path` = parts folder / key was written with."""
    held = pq.read_schema(part_files(path)[0]).metadata or {}
    metadata: dict[str, Any] = json.loads(held.get(_METADATA_KEY, b"{}"))
    return metadata


def as_table(rows: Sequence[RequestRow] | Sequence[StepRow], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table of `schema`."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)


def _write(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    described = table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata).encode()})
    write_whole(path, lambda unfinished: pq.write_table(described, unfinished))


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise EntMTPError(f"part '{path}' cannot be read ({_first_line(error)}); delete it and run again") from error
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise EntMTPError(
            f"part '{path}' has no column '{missing[0]}'; another version wrote it: delete it and run again"
        )
    try:
        return table.select(schema.names).cast(schema).replace_schema_metadata(None)
    except (ValueError, pa.ArrowException) as error:
        raise EntMTPError(
            f"part '{path}' holds other values ({_first_line(error)}); delete it and run again"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
