import math
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from entmtp.errors import EntMTPError
from entmtp.evaluation.results.rows import (
    REQUEST_SCHEMA,
    STEP_SCHEMA,
    finished_keys,
    part_files,
    read_metadata,
    read_parts,
    tables_of,
    write_part,
)
from entmtp.evaluation.results.storage import Store, open_store
from tests.helpers.synthetic_rows import make_rows


def parts(folder: Path) -> Store:
    return open_store(str(folder))


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    requests, steps = make_rows(arms=("autoregressive", "hydra"), suites=("gsm8k",), prompts=1, repetitions=2)
    write_part(parts(tmp_path), "a1", *tables_of(requests, steps), {"model": "m", "nested": {"b": [1, 2]}})
    read_requests, read_steps = read_parts(parts(tmp_path))
    wanted = sorted((asdict(row) for row in requests), key=lambda row: (row["arm"], row["repetition"]))
    for written, read in zip(wanted, read_requests.to_pylist(), strict=True):
        assert math.isnan(written.pop("tie_margin"))
        assert math.isnan(read.pop("tie_margin"))
        assert read == written
    order = [(row.arm, row.repetition, row.step) for row in steps]
    assert [(row["arm"], row["repetition"], row["step"]) for row in read_steps.to_pylist()] == sorted(order)
    assert read_metadata(parts(tmp_path), ["a1"]) == [{"model": "m", "nested": {"b": [1, 2]}}]


def test_only_the_score_may_be_missing() -> None:
    assert [field.name for field in REQUEST_SCHEMA if field.nullable] == ["score"]
    assert not [field.name for field in STEP_SCHEMA if field.nullable]


def test_tables_do_not_depend_on_the_shards(tmp_path: Path) -> None:
    requests, steps = make_rows(arms=("hydra", "entmtp"), prompts=2, repetitions=2)
    write_part(parts(tmp_path / "one"), "all", *tables_of(requests, steps), {})
    for number, suite in enumerate(["litbench", "humaneval", "sharegpt", "gsm8k"]):
        write_part(
            parts(tmp_path / "many"),
            f"shard{number}",
            *tables_of(
                [row for row in reversed(requests) if row.suite == suite],
                [row for row in reversed(steps) if row.suite == suite],
            ),
            {"shard": number},
        )
    one, many = (read_parts(parts(tmp_path / name)) for name in ("one", "many"))
    assert one[0].drop_columns("tie_margin") == many[0].drop_columns("tie_margin")
    assert one[1] == many[1]


def test_shard_without_its_requests_file_is_unfinished(tmp_path: Path) -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("gsm8k",), prompts=1)
    write_part(parts(tmp_path), "done", *tables_of(requests, steps), {})
    write_part(parts(tmp_path), "cut", *tables_of(requests, steps), {})
    (tmp_path / part_files("cut")[0]).unlink()
    assert finished_keys(parts(tmp_path)) == {"done"}
    assert read_parts(parts(tmp_path))[0].num_rows == len(requests)
    assert read_parts(parts(tmp_path))[1].num_rows == len(steps)


def test_chosen_shards_alone_are_read(tmp_path: Path) -> None:
    for suite in ("gsm8k", "litbench"):
        write_part(parts(tmp_path), suite, *tables_of(*make_rows(arms=("hydra",), suites=(suite,), prompts=1)), {})
    requests, steps = read_parts(parts(tmp_path), ["litbench"])
    assert set(requests["suite"].to_pylist()) == set(steps["suite"].to_pylist()) == {"litbench"}


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("gsm8k",), prompts=1)
    (tmp_path / part_files("k")[0]).mkdir(parents=True)  # the requests file cannot take this name
    with pytest.raises(EntMTPError, match="can't write requests-k"):
        write_part(parts(tmp_path), "k", *tables_of(requests, steps), {})
    assert {file.name for file in tmp_path.iterdir()} == {"requests-k.parquet", "steps-k.parquet"}


def test_folder_without_parts_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match="holds no finished part"):
        read_parts(parts(tmp_path))


def test_broken_part_is_named(tmp_path: Path) -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("gsm8k",), prompts=1)
    write_part(parts(tmp_path), "k", *tables_of(requests, steps), {})
    file = tmp_path / part_files("k")[0]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EntMTPError, match=r"requests-k\.parquet' cannot be read"):
        read_parts(parts(tmp_path))


def test_part_of_another_version_is_named(tmp_path: Path) -> None:
    requests, steps = make_rows(arms=("hydra",), suites=("gsm8k",), prompts=1)
    write_part(parts(tmp_path), "k", *tables_of(requests, steps), {})
    file = tmp_path / part_files("k")[1]
    pq.write_table(pq.read_table(file).drop_columns("entropy_ema"), file)
    with pytest.raises(EntMTPError, match="no column 'entropy_ema'"):
        read_parts(parts(tmp_path))
