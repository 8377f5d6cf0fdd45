"""Answers of Ray Serve's REST API, and what is made of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.serve_rest import ServeRest
from entmtp.errors import EntMTPError


@contextmanager
def answering(status: int, text: str) -> Iterator[tuple[ServeRest, list[bytes]]]:
    """A server that gives one answer to all, and what it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield ServeRest(f"http://127.0.0.1:{server.server_address[1]}"), bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def application(status: str, message: str = "", deployment: str = "") -> str:
    one = {"status": status, "message": message, "deployments": {"d": {"message": deployment}}}
    return json.dumps({"applications": {"a": one}})


def test_a_configuration_is_sent_as_it_is() -> None:
    with answering(200, "") as (rest, bodies):
        rest.deploy({"applications": []})
    assert [json.loads(body) for body in bodies] == [{"applications": []}]


def test_what_serve_does_not_understand_is_told_in_one_line() -> None:
    with pytest.raises(ValidationError) as refused:
        ServeDeploySchema.model_validate({"applications": [], "http_options": {"port": "x"}})
    with (
        answering(400, repr(refused.value)) as (rest, _),
        pytest.raises(
            EntMTPError, match=r"^config: Ray Serve refuses it: .*http_options\.port; Input should be"
        ) as reported,
    ):
        rest.deploy({})
    assert "\n" not in str(reported.value)
    assert "https://" not in str(reported.value)


def test_what_breaks_within_serve_is_told_by_the_last_line_of_its_traceback() -> None:
    text = json.dumps({"result": False, "msg": "Traceback …\n  File …\nRuntimeError: no proxy\n"})
    with answering(500, text) as (rest, _), pytest.raises(EntMTPError, match=r"refuses it: RuntimeError: no proxy$"):
        rest.deploy({})


def test_a_dashboard_that_is_not_there() -> None:
    with answering(200, "") as (rest, _):
        pass
    with pytest.raises(EntMTPError, match="Serve can't be started"):
        rest.deploy({})
    assert rest.states() == {}
    assert not rest.nothing_runs()


def test_a_dashboard_says_when_nothing_runs() -> None:
    for text, nothing in ((application("DELETING"), False), ('{"applications": {}}', True), ("not JSON", False)):
        with answering(200, text) as (rest, _):
            assert rest.nothing_runs() == nothing


def test_states_are_told_by_application() -> None:
    with answering(200, application("RUNNING")) as (rest, _):
        assert rest.states() == {"a": "running"}


@pytest.mark.parametrize("status", ["DEPLOY_FAILED", "UNHEALTHY"])
def test_why_an_application_can_not_be_started(status: str) -> None:
    trace = "Traceback …\n  entmtp.errors.EntMTPError: bank: x does not exist\n"
    with (
        answering(200, application(status, "deploying d failed", trace)) as (rest, _),
        pytest.raises(EntMTPError, match=r"^application a: entmtp\.errors\.EntMTPError: bank: x does not exist$"),
    ):
        rest.states()
