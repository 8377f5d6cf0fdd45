"""The ready message's commands can be typed as they stand."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments.protocol.schema import ChatRequest
from deployments.ready import RunningService, ready_message
from deployments.serve_local import CONFIG, read_config


def message(has_keys: bool = False, config: dict[str, Any] | None = None) -> str:
    running = RunningService("http://127.0.0.1:8000", "http://127.0.0.1:8265", Path("/tmp/logs"), has_keys)
    return ready_message(running, config or read_config(CONFIG))


def curl(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if line.startswith("curl ")]
    return shlex.split(line)


def test_the_request_is_short_and_streams() -> None:
    words = curl(message())
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:8000/v1/chat/completions"]
    body = json.loads(words[words.index("-d") + 1])
    ChatRequest.model_validate(body)
    assert body["stream"] is True
    assert 1 <= body["max_tokens"] <= 64
    assert body["model"] == "smollm2-135m"
    assert not any("Authorization" in word for word in words)


def test_where_keys_are_needed_the_request_has_one() -> None:
    words = curl(message(has_keys=True))
    assert words[words.index("Authorization: Bearer KEY") - 1] == "-H"
    assert json.loads(words[words.index("-d") + 1])["max_tokens"]


def test_it_names_the_dashboard_and_commands_that_exist() -> None:
    lines = message().splitlines()
    assert "ready: http://127.0.0.1:8000" in lines
    assert "dashboard: http://127.0.0.1:8265" in lines
    assert f"logs: /tmp/logs; of requests, {Path('~/.local/state/entmtp/requests').expanduser()}" in lines
    (change,) = [line for line in lines if "serve deploy FILE --address http://127.0.0.1:8265" in line]
    assert Path(change.partition(": ")[2].split()[0]).name == "serve"
    (job,) = [line.strip() for line in lines if " job submit " in line]
    command = shlex.split(job)
    assert Path(command[0]).resolve() == Path(sys.executable).with_name("ray").resolve()
    assert command[1:5] == ["job", "submit", "--address", "http://127.0.0.1:8265"]
    assert command[-4:] == ["python", "jobs/benchmark.py", "--results", "$PWD/results"]


def engines(**changes: Any) -> dict[str, Any]:
    config = read_config(CONFIG)
    config["applications"][0]["args"]["engines"][0] |= changes
    return config


def test_it_says_what_a_job_waits_for() -> None:
    assert "which engine smollm2-dynamic has all of: give that num_cpus" in message()
    scaled = engines(num_cpus=1, autoscaling={"max_replicas": 3})
    assert "give it --cpus-per-worker, as engines may take 3" in message(config=scaled)
    on_gpu = engines(device="cuda", num_gpus=1)
    assert "waits for those that engine smollm2-dynamic has; --device cpu" in message(config=on_gpu)


def test_commands_of_a_folder_below_are_called_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert " .venv/bin/serve deploy FILE" in message()
