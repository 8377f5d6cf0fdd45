"""The page for people with a model of their own, typed in as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from entmtp.ray_head import free_ports
from tests.helpers.paths import ROOT
from tests.helpers.saved_project import save_tiny_model

PAGE = ROOT / "docs" / "your-own-model.md"
BINARIES = Path(sys.executable).parent
PROMPTS = 200


def blocks(language: str) -> list[str]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block[2] for block in found if block[1] == language]


@pytest.mark.slow
def test_the_page_leads_from_a_model_to_an_endpoint(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "my-model", model_type="qwen3")
    lines = [json.dumps({"prompt": f"Tell me about the number {number}."}) for number in range(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    environment = os.environ | {"PATH": f"{BINARIES}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    *commands, serve = [line for block in blocks("") for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    (config,) = blocks("yaml")
    (port,) = free_ports(1)
    given = yaml.safe_load(config)
    given["http_options"]["port"] = port
    (tmp_path / "my-model.yaml").write_text(yaml.safe_dump(given))
    process = subprocess.Popen(
        shlex.split(serve), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        seen = ""
        for line in process.stdout:
            seen += line
            if "--address" in line:
                break
        assert "ready: " in seen, seen
        body = {"model": "my-model", "prompt": "One, two,", "max_tokens": 8, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 8
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
