"""The load generator as a command, against a service on a socket, with a real MLflow."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from typer import Typer
from typer.testing import CliRunner

from entmtp.loadtest.mlflow import LOAD_EXPERIMENT
from entmtp.tracking.client import default_tracking_uri
from jobs.load import main
from tests.helpers.chat_service import service


@pytest.fixture
def url() -> Iterator[str]:
    """The service's address; it runs in a thread of its own, as the command has an event loop too."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    found: list[str] = []

    async def serve(stop: asyncio.Event) -> None:
        async with service(together=1) as (address, _):
            found.append(address)
            ready.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(stop),))
    thread.start()
    ready.wait(30)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def test_a_sweep_ends_in_tables_a_figure_and_mlflow(url: str, tmp_path: Path) -> None:
    questions = tmp_path / "throughput_1k.jsonl"
    rows = [{"question_id": n, "category": "low_entropy", "turns": [f"Text number {n}."]} for n in range(80)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = tmp_path / "results"
    program = Typer()
    program.command()(main)
    done = CliRunner().invoke(
        program,
        [
            *(f"--endpoint={name}={url}" for name in ("here", "there")),
            *("--model=m", "--users=1,4", "--rate=200", "--requests=3", "--rounds=2", f"--results={results}"),
            *("--suite=speed-bench-1k-low-entropy", f"--data=speed-bench-1k={questions}"),
        ],
    )
    assert done.exit_code == 0, done.output
    levels = pq.read_table(results / "levels.parquet").to_pylist()
    assert [(row["endpoint"], row["users"], row["rate"], row["requests"], row["errors"]) for row in levels] == [
        *((name, 1, None, 6, 0) for name in ("here", "there")),
        *((name, 4, None, 16, 0) for name in ("here", "there")),
        *((name, None, 200.0, 6, 0) for name in ("here", "there")),
    ]
    assert all(row["tokens_per_second"] > 0 and 0 < row["ttft_p50"] <= row["ttft_p99"] for row in levels)
    assert pq.read_table(results / "requests.parquet").num_rows == 2 * (6 + 16 + 6)
    assert (results / "throughput.png").stat().st_size > 0
    for told in ("4 users", "200 requests/s", "here over there, whole answers", "throughput.png"):
        assert told in done.output

    client = MlflowClient(tracking_uri=default_tracking_uri(results))
    experiment = client.get_experiment_by_name(LOAD_EXPERIMENT)
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {
        "load",
        *(f"{name}, {level}" for name in ("here", "there") for level in ("1 user", "4 users", "200 requests/s")),
    }
    assert runs["here, 4 users"].data.params == {"endpoint": "here", "users": "4"}
    assert runs["here, 4 users"].data.metrics["requests"] == 16
    kept = {file.path for file in client.list_artifacts(runs["load"].info.run_id)}
    assert {"throughput.png", "levels.json", "requests.json"} <= kept
