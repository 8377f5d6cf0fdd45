"""Keys, limits, sizes: who may ask for how much."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from deployments.engines.rate_limit import RateLimiter
from deployments.http import auth
from deployments.http.auth import ANONYMOUS, VARIABLE, ApiKeys, load_keys, require_keys
from deployments.http.body_limit import BodyLimit
from deployments.protocol.errors import ApiError
from deployments.settings import LimitArgs
from entmtp.errors import EntMTPError


def test_a_made_key_opens_and_nothing_else_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert auth.main(["alice"]) == 0
    printed = capsys.readouterr()
    key, line = printed.err.split()[-1], printed.out
    assert key not in line
    path = tmp_path / "keys.txt"
    path.write_text(line)
    keys = load_keys(path)
    assert keys
    assert keys.owner(f"Bearer {key}") == keys.owner(None, key) == "alice"
    for header in (None, "", "Bearer", "Bearer ", key, f"Basic {key}", f"Bearer {key}x", "Bearer é"):
        with pytest.raises(ApiError) as refusal:
            keys.owner(header, "wrong" if header is None else None)
        assert refusal.value.status == 401


def test_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load_keys(None)
    assert load_keys(None).owner(None) == ANONYMOUS
    monkeypatch.setenv(VARIABLE, f"bob:{auth._digest('secret')} eve:{auth._digest('other')}")
    assert load_keys(None).owner("bearer other") == "eve"


@pytest.mark.parametrize("line", ["alice", "alice:secret", f"al ice:{'0' * 64}", f"alice:{'0' * 63}"])
def test_a_file_that_holds_no_hashes_is_refused_without_telling_them(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(line)
    with pytest.raises(EntMTPError, match="api_keys_file") as refusal:
        load_keys(path)
    assert "secret" not in str(refusal.value)
    with pytest.raises(EntMTPError, match=r"^api_keys_file: .*absent"):
        load_keys(tmp_path / "absent")


def test_an_entry_that_is_none_is_counted_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, path = f"bob:{auth._digest('secret')}", tmp_path / "keys.txt"
    monkeypatch.setenv(VARIABLE, f"{good} {good}")
    path.write_text(f"{good}\nalice:secret\n")
    with pytest.raises(EntMTPError, match=rf"^api_keys_file: {path}, entry 2 is not NAME:SHA256; make one"):
        load_keys(path)
    monkeypatch.setenv(VARIABLE, f"{good} {good} alice:secret")
    with pytest.raises(EntMTPError, match=rf"^{VARIABLE}: entry 3 is not NAME:SHA256; make one"):
        load_keys(path)


@pytest.mark.parametrize(
    ("host", "open_to_strangers"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("10.0.0.7", True), ("", True)],
)
def test_without_keys_only_this_machine_may_ask(host: str, open_to_strangers: bool) -> None:
    require_keys(host, ApiKeys({"alice": "0" * 64}), allow_anonymous=False)
    require_keys(host, ApiKeys({}), allow_anonymous=True)
    if open_to_strangers:
        with pytest.raises(EntMTPError, match=r"^api_keys_file: .* allow_anonymous"):
            require_keys(host, ApiKeys({}), allow_anonymous=False)
    else:
        require_keys(host, ApiKeys({}), allow_anonymous=False)


def test_a_key_gets_so_much_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limiter = RateLimiter(LimitArgs(requests_per_minute=2, tokens_per_minute=100))
    assert limiter.take("a", 10) == 0
    assert limiter.take("a", 10) == 0
    assert limiter.take("a", 10) == pytest.approx(30)
    assert limiter.take("b", 80) == 0
    assert limiter.take("b", 80) == pytest.approx(36)
    now[0] = 30.0
    assert limiter.take("a", 10) == 0
    now[0] = 1000.0
    # More than the bucket holds can be had when it is full, or it never could.
    assert limiter.take("b", 1000) == 0
    assert limiter.take("b", 1) > 0


async def through(messages: list[Message | float], size: int = 100, seconds: float = 0.2) -> tuple[int, bytes]:
    """Sends body messages (numbers are pauses) through the middleware to an application that echoes the body."""

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        await PlainTextResponse(body)(scope, receive, send)

    waiting = iter(messages)

    async def receive() -> Message:
        for message in waiting:
            if not isinstance(message, float):
                return message
            await asyncio.sleep(message)
        await asyncio.sleep(3600)
        raise AssertionError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "headers": [], "path": "/"}
    await BodyLimit(echo, size=size, seconds=seconds)(scope, receive, send)
    return (sent[0]["status"], sent[1]["body"]) if sent else (0, b"")


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_bodies_are_bounded_in_size_and_time() -> None:
    assert asyncio.run(through([part(b"ab", more=True), part(b"cd")])) == (200, b"abcd")
    assert asyncio.run(through([part(b"x" * 60, more=True), part(b"x" * 60)]))[0] == 413
    assert asyncio.run(through([part(b"a", more=True), 10.0, part(b"b")]))[0] == 408
    assert asyncio.run(through([part(b"a", more=True), {"type": "http.disconnect"}])) == (0, b"")
