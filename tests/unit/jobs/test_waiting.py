"""Report of resources for which calls wait. No Ray runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from entmtp.evaluation.run.placement import Node, Placement
from jobs import workers
from jobs.waiting import MissingResources
from jobs.workers import used_by_others

MISSING = "1 CPU: 0 of 2 are free"


class KnownMissing(MissingResources):
    """Missing resources of workers, as given."""

    def __init__(self, missing: Mapping[str, str | None]) -> None:
        self.missing = missing

    def of(self, actor: Any, nodes: Sequence[Node], since: float) -> str | None:
        return self.missing[actor]


@pytest.mark.parametrize(
    ("threads", "running", "waiting", "reported"),
    [
        (1, [], {"a": MISSING, "b": MISSING}, [MISSING, MISSING]),
        (1, [], {"a": MISSING, "b": None}, []),
        (1, ["a"], {"b": MISSING, "c": MISSING}, [MISSING, MISSING]),
        (1, ["a"], {"b": MISSING, "c": None}, []),
        (1, ["a", "b"], {"c": MISSING}, []),
        (2, ["a"], {"b": MISSING}, []),
        (1, ["a"], {}, []),
    ],
    ids=[
        "none has started",
        "one can start",
        "the first has started",
        "the first has started and another can",
        "they use all resources",
        "one of them uses all resources",
        "none waits",
    ],
)
def test_missing_resources_are_reported_while_others_use_them(
    threads: int,
    running: list[str],
    waiting: dict[str, str | None],
    reported: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        workers, "alive_nodes", lambda: [Node("1", "one", 2.0, 0.0, ""), Node("0", "head", 0.0, 0.0, "")]
    )
    monkeypatch.setattr(workers, "has_a_process", lambda worker: worker in running)
    placement = Placement("cpu", 0.0, threads, "")
    assert used_by_others([*running, *waiting], placement, KnownMissing(waiting), 0.0) == reported
