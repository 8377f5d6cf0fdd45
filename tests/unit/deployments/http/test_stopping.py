"""A service that stops: requests that run are finished, new ones are refused so that clients understand it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import proxy_settings, serve_local, stop_file
from deployments.http.proxy_middleware import ProxyMiddleware
from deployments.proxy_settings import ProxySettings
from deployments.ready import RunningService
from tests.helpers.proxied_ingresses import DONE, LOGGED, Ingresses, body, lines, part, send_through, start

CONFIG = {"applications": [{"args": {"engines": [{"name": "e", "model_name": "m"}]}}]}


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder where the ingresses log."""
    monkeypatch.setattr(proxy_settings, "read_proxy_settings", lambda: ProxySettings(tmp_path))
    return tmp_path


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that says so to the proxies; it is not there yet."""
    path = tmp_path / "stopping"
    monkeypatch.setenv(stop_file.VARIABLE, str(path))
    return path


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/prefix/v1/completions"])
def test_new_requests_for_text_are_refused_while_the_service_stops(path: str, stop: Path, logs: Path) -> None:
    app = Ingresses(DONE)
    through = ProxyMiddleware(app)
    assert send_through(through, body(b"{}"), path=path)[-1]["body"] == b"done"
    stop.touch()
    head, answer = send_through(through, body(b"{}"), path=path)
    assert head["status"] == 503
    assert dict(head["headers"])[b"retry-after"] == b"1"
    error = json.loads(answer["body"])["error"]
    assert error["type"] == "unavailable_error"
    assert error["message"].startswith("service: ")
    assert len(app.bodies) == 1
    assert [line["status"] for line in lines(logs, 1)] == [503]


@pytest.mark.parametrize(
    ("path", "method"), [("/health", "GET"), ("/v1/models", "GET"), ("/v1/completions", "OPTIONS")]
)
def test_other_requests_are_answered_while_the_service_stops(path: str, method: str, stop: Path) -> None:
    stop.touch()
    assert send_through(Ingresses(DONE), body(b""), path=path, method=method)[-1]["body"] == b"done"


@pytest.mark.parametrize("status", [404, 503])
def test_what_serve_refuses_itself_is_told_as_clients_read_it(status: int, logs: Path) -> None:
    head, answer = send_through(Ingresses([start(status), part(b"Path ", more=True), part(b"not found")]), body(b"{}"))
    assert head["status"] == 503
    assert dict(head["headers"])[b"retry-after"] == b"1"
    assert json.loads(answer["body"])["error"]["message"].startswith("service: ")
    assert [line["status"] for line in lines(logs, 1)] == [503]


@pytest.mark.parametrize(
    ("status", "path", "logged"),
    [
        (404, "/v1/completions", True),
        (503, "/v1/completions", True),
        (404, "/ready", False),
        (500, "/v1/completions", False),
    ],
)
def test_other_refusals_are_not_touched(status: int, path: str, logged: bool) -> None:
    head, answer = send_through(Ingresses([start(status, [LOGGED] * logged), part(b"why")]), body(b"{}"), path=path)
    assert (head["status"], answer["body"]) == (status, b"why")


class Serve:
    """Stands for a running service that answers how many requests it has, and for Serve's REST API."""

    def __init__(self, *reported: Mapping[str, Any], stop: Path) -> None:
        self.reported = list(reported)
        self.stop = stop
        self.happened: list[str] = []
        self.running = 2

    def get(self, url: str) -> Mapping[str, Any]:
        assert url == "http://here/-/ongoing"
        assert self.stop.exists()
        answer = self.reported.pop(0) if len(self.reported) > 1 else self.reported[0]
        self.happened.append(str(answer.get("requests")))
        return answer

    def deploy(self, config: Mapping[str, Any]) -> None:
        assert config["applications"] == []
        self.happened.append("deploy")

    def nothing_runs(self) -> bool:
        self.running -= 1
        self.happened.append("look")
        return self.running < 0


Finish = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def finish(monkeypatch: pytest.MonkeyPatch, stop: Path) -> Finish:
    """Stops a service that answers so; returns what happened, and what was said."""
    monkeypatch.setattr(serve_local, "_POLL_SECONDS", 0.0)

    def stopped(*reported: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        serve: Any = Serve(*reported, stop=stop)
        monkeypatch.setattr(serve_local, "get_json", serve.get)
        head: Any = SimpleNamespace(check=lambda: None)
        said: list[str] = []
        running = RunningService("http://here", "http://dashboard", Path("logs"), has_keys=False)
        serve_local._finish_requests(running, serve, head, CONFIG, stop, said.append)
        return serve.happened, said

    return stopped


def test_applications_go_when_no_request_runs_any_more(finish: Finish) -> None:
    happened, said = finish({"requests": 2}, {"requests": 2}, {"requests": 1}, {"requests": 0})
    assert happened == ["2", "2", "1", "0", "deploy", "look", "look", "look"]
    assert said == [
        "stopping: finishing 2 requests; Ctrl-C again stops at once",
        "stopping: 1 request left",
        "stopping: 0 requests left",
    ]
    assert finish({"requests": 0})[1] == ["stopping"]


def test_a_proxy_that_does_not_answer_has_requests_all_the_same(finish: Finish) -> None:
    happened, _ = finish({}, {"requests": 1}, {}, {}, {"requests": 0})
    assert happened[:6] == ["None", "1", "None", "None", "0", "deploy"]


def test_a_proxy_that_never_answers_is_not_waited_for(finish: Finish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_local, "_SILENT_SECONDS", 0.05)
    assert "deploy" in finish({})[0]


def test_a_request_whose_deadline_has_passed_is_not_waited_for(finish: Finish, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"limits": {"request_seconds": 0.05}}
    monkeypatch.setitem(CONFIG, "applications", [{"args": CONFIG["applications"][0]["args"] | limits}])
    assert "deploy" in finish({"requests": 1})[0]


def test_applications_that_do_not_go_are_not_waited_for_long(finish: Finish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_local, "_LEAVE_SECONDS", 0.05)
    monkeypatch.setattr(Serve, "nothing_runs", lambda _: False)
    assert finish({"requests": 0})[0] == ["0", "deploy"]
