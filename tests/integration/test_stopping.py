"""The end of the service that the other files used, so that its file must be the last of them by name."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.local_service import WAIT_SECONDS, Service, read_request_log

pytestmark = pytest.mark.xdist_group("ray")

TOKENS = 100
ANSWERS = 16
"""More than run at once."""


def test_it_finishes_its_requests_and_leaves_nothing(service: Service, logs: Path) -> None:
    streamed = service.request(prompt="Once", max_tokens=TOKENS, ignore_eos=True, stream=True)
    many = service.request(prompt=[f"{number}," for number in range(ANSWERS)], max_tokens=TOKENS, ignore_eos=True)
    service.look()
    with ThreadPoolExecutor(1) as other, urllib.request.urlopen(streamed, timeout=WAIT_SECONDS) as response:
        whole = other.submit(lambda: json.load(urllib.request.urlopen(many, timeout=WAIT_SECONDS)))
        response.readline()
        time.sleep(1.0)  # by now it is being written, but most of it is not begun
        service.interrupt()
        service.wait_for("stopping: finishing 2 requests;")
        with pytest.raises(urllib.error.HTTPError) as late:
            urllib.request.urlopen(service.request(prompt="Once"), timeout=WAIT_SECONDS)
        text = response.read().decode()
        answers = whole.result()
    assert text.strip().endswith("data: [DONE]")
    assert [one["finish_reason"] for one in answers["choices"]] == ["length"] * ANSWERS
    assert (late.value.code, late.value.headers["Retry-After"]) == (503, "1")
    assert json.load(late.value)["error"]["type"] == "unavailable_error"
    began = time.monotonic()
    assert service.ended(WAIT_SECONDS) == 130
    assert time.monotonic() - began < 30  # Ray alone would take longer
    (stopped,) = [line for line in service.lines if line.startswith("stopped the local Ray cluster; ")]
    stored = Path(stopped.split()[-1])
    assert "loaded (" in "".join(one.read_text() for one in stored.glob("logs/serve/replica_*dynamic*"))
    assert service.left() == []
    assert read_request_log(logs)  # the log outlives the service
