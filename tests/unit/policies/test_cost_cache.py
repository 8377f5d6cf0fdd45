import json
import logging
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from entmtp.errors import EntMTPError
from entmtp.policies.cost_cache import (
    CostCorrection,
    CostCorrectionFile,
    correction_path,
    cost_path,
    fingerprint,
    read_cost,
    write_cost,
)
from entmtp.policies.step_cost import CostTable
from tests.helpers.simulated_machine import step_cost

TABLE = CostTable(contexts=[160], costs=[step_cost()])
CORRECTION = CostCorrection(
    table=fingerprint(TABLE), logs=[0.0, 0.5], covariance=[[0.1, 0.0], [0.0, 0.2]], draft_log=0.1, draft_variance=0.3
)


def test_a_cost_is_stored_per_model_heads_hardware_and_type(tmp_path: Path) -> None:
    path = cost_path(tmp_path, "a CPU", "model", "heads", "torch.float32")
    assert read_cost(path, pytest.fail) is None
    write_cost(path, TABLE)
    assert read_cost(path, pytest.fail) == TABLE
    assert list(path.parent.iterdir()) == [path]
    others = {
        cost_path(tmp_path, "another CPU", "model", "heads", "torch.float32"),
        cost_path(tmp_path, "a CPU", "other model", "heads", "torch.float32"),
        cost_path(tmp_path, "a CPU", "model", "other heads", "torch.float32"),
        cost_path(tmp_path, "a CPU", "model", "heads", "torch.bfloat16"),
        cost_path(tmp_path, "a CPU", "model", "heads", "torch.float32", 2),
        correction_path(tmp_path, "a CPU", "model", "heads", "torch.float32"),
    }
    assert len(others - {path}) == 6


def test_a_cost_of_an_older_format_is_measured_again_and_one_line_says_so(tmp_path: Path) -> None:
    path, said = tmp_path / "cost.json", list[str]()
    path.write_text(step_cost().model_dump_json())
    assert read_cost(path, said.append) is None
    assert said == [f"step costs in {path} are of an older format; they are measured again"]


@pytest.mark.parametrize("changes", [{"contexts": [1, 2]}, {"costs": [{}]}, {"spread": "wide"}, {"unknown": 1}, None])
def test_a_cost_with_holes_is_an_error(changes: dict[str, Any] | None, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    path.write_text("{" if changes is None else json.dumps(TABLE.model_dump() | changes))
    with pytest.raises(EntMTPError, match=r"cost\.json is not a complete step-cost table; remove it"):
        read_cost(path, pytest.fail)


def test_corrections_are_read_by_the_next_run(tmp_path: Path) -> None:
    cache = CostCorrectionFile(tmp_path / "costs" / "a.learnt.json")
    assert cache.read() == {}
    cache.write({1: CORRECTION})
    other = CORRECTION.model_copy(update={"logs": [0.1, 0.2]})
    cache.write({4: other})
    assert cache.read() == {1: CORRECTION, 4: other}
    cache.write({4: CORRECTION})
    assert cache.read() == {1: CORRECTION, 4: CORRECTION}


def content(**changes: Any) -> str:
    return json.dumps({"by_batch": {"1": CORRECTION.model_dump() | changes}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 2, "by_batch": {}}',
        content(covariance=[]),
        content(covariance=[[-1.0, 0.0], [0.0, 1.0]]),
        content(covariance=[[1.0, 0.5], [0.0, 1.0]]),
        content(logs=[float("nan"), 0.0]),
        content(draft_variance=-1.0),
        content(unknown=1),
        pytest.param(content().ljust(2**22 + 1), id="too long"),
    ],
)
def test_a_broken_file_of_corrections_is_started_anew(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CostCorrectionFile(tmp_path / "a.learnt.json")
    (tmp_path / "a.learnt.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert cache.read() == {}
    assert len(caplog.records) == 1
    assert "are learned again" in caplog.text
    cache.write({1: CORRECTION})
    assert cache.read() == {1: CORRECTION}


def test_replicas_that_write_at_once_leave_a_whole_file(tmp_path: Path) -> None:
    cache = CostCorrectionFile(tmp_path / "a.learnt.json")
    cache.write({1: CORRECTION})
    with FileLock(tmp_path / "a.learnt.lock"):
        cache.write({1: CORRECTION.model_copy(update={"logs": [1.0, 1.0]})})  # the other one's counts, and nobody waits
    assert cache.read() == {1: CORRECTION}


def test_a_full_or_locked_disk_does_not_end_decoding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "costs").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        CostCorrectionFile(tmp_path / "costs" / "a.learnt.json").write({1: CORRECTION})
    assert "could not be saved" in caplog.text
