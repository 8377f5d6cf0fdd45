"""Deaths of replicas that are known to be no call's fault."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.core.generated import common_pb2
from ray.exceptions import ActorUnavailableError

from deployments.engines import deaths
from deployments.engines.deaths import died_with_its_node

ACTOR = b"a" * 16
GONE = ActorUnavailableError("gone", ACTOR)


def cause(reason: str) -> Any:
    messages: Any = common_pb2
    context = messages.ActorDiedErrorContext(reason=messages.ActorDiedErrorContext.Reason.Value(reason))
    return messages.ActorDeathCause(actor_died_error_context=context)


def dead(reason: str) -> dict[str, Any]:
    return {"State": "DEAD", "DeathCause": cause(reason)}


ALIVE = {"State": "ALIVE", "DeathCause": cause("UNSPECIFIED")}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "_VERDICT_SECONDS", 0.3)
    monkeypatch.setattr(deaths, "_POLL_SECONDS", 0.01)


def verdict(monkeypatch: pytest.MonkeyPatch, *reported: Any, error: BaseException = GONE) -> bool:
    """The verdict on what the cluster reports, again and again."""
    answers = list(reported)

    def actors(actor: str) -> dict[str, Any]:
        assert actor == ACTOR.hex()
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    monkeypatch.setattr(deaths, "actors", actors)
    return asyncio.run(died_with_its_node(error))


@pytest.mark.parametrize("reason", ["WORKER_DIED", "RAY_KILL", "OWNER_DIED", "UNSPECIFIED"])
def test_a_process_that_ended_may_have_ended_for_a_call(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    assert not verdict(monkeypatch, dead(reason))


def test_a_node_does_not_go_for_a_call_and_is_missed_late(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(monkeypatch, ALIVE, ALIVE, ALIVE, dead("NODE_DIED"))


@pytest.mark.parametrize("reported", [{}, ALIVE, RuntimeError("no cluster")])
def test_what_is_not_known_is_no_excuse(monkeypatch: pytest.MonkeyPatch, reported: Any) -> None:
    assert not verdict(monkeypatch, reported)


def test_an_error_that_names_no_replica_is_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not verdict(monkeypatch, dead("NODE_DIED"), error=ValueError("a broken stream"))
