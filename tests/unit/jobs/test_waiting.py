"""Calls that wait for a place in the cluster: which of them a line is about. No Ray runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from entmtp.evaluation.run.placement import Node, Placement
from jobs import workers
from jobs.waiting import Waiting
from jobs.workers import held_by_others

LACK = "1 CPU: 0 of 2 are free"


class Known(Waiting):
    """Lacks of workers as they are given."""

    def __init__(self, lacks: Mapping[str, str | None]) -> None:
        self.lacks = lacks

    def lack(self, actor: Any, nodes: Sequence[Node], since: float) -> str | None:
        return self.lacks[actor]


@pytest.mark.parametrize(
    ("threads", "running", "lacks", "said"),
    [
        (1, [], {"a": LACK, "b": LACK}, [LACK, LACK]),
        (1, [], {"a": LACK, "b": None}, []),
        (1, ["a"], {"b": LACK, "c": LACK}, [LACK, LACK]),
        (1, ["a"], {"b": LACK, "c": None}, []),
        (1, ["a", "b"], {"c": LACK}, []),
        (2, ["a"], {"b": LACK}, []),
        (1, ["a"], {}, []),
    ],
    ids=[
        "none has begun",
        "one can begin",
        "the first has begun",
        "the first has begun and another can",
        "all places are theirs",
        "the only place is theirs",
        "none waits",
    ],
)
def test_what_waiting_calls_lack_is_said_while_others_hold_a_place(
    threads: int,
    running: list[str],
    lacks: dict[str, str | None],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        workers, "alive_nodes", lambda: [Node("1", "one", 2.0, 0.0, ""), Node("0", "head", 0.0, 0.0, "")]
    )
    monkeypatch.setattr(workers, "has_a_process", lambda worker: worker in running)
    placement = Placement("cpu", 0.0, threads, "")
    assert held_by_others([*running, *lacks], placement, Known(lacks), 0.0) == said
