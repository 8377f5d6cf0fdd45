"""The comparison with float64: right kernels pass, a wrong mask or product does not."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import accuracy, kernel_errors
from benchmarks.gpu.assignment import Assignment
from benchmarks.lib.record import Table, read_record
from entmtp.errors import EntMTPError
from entmtp.models.build import build_backbone
from entmtp.settings import Kernels
from entmtp.trees.batch import TreeBatch
from entmtp.trees.topology import Topology
from tests.helpers.tiny_models import plain_logits, tiny_model

TREE = Topology.of([(0,), (1,), (0, 0), (0, 2), (1, 0), (0, 0, 0)])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "PROMPTS", (3, 11))
    monkeypatch.setattr(accuracy, "NODES", (7, 0))


def test_the_reference_is_each_nodes_path_alone() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    prompt, draft = [5, 6, 7], [11, 12, 13, 14, 15, 16, 17]
    found = accuracy.expected_logits(model, prompt, draft, TREE)
    assert found.shape == (7, model.config.vocab_size)
    number: dict[tuple[int, ...], int] = {(): 0}
    number |= {path: at for at, path in enumerate(TREE.paths, 1)}
    for path, node in number.items():
        text = [draft[number[path[:depth]]] for depth in range(len(path) + 1)]
        torch.testing.assert_close(found[node], plain_logits(model, [*prompt, *text])[-1])


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_ragged_batches_agree_with_float64(architecture: str) -> None:
    model = tiny_model(architecture)
    reference = torch.nn.Module.to(copy.deepcopy(model), torch.float64)
    assert accuracy.max_error(build_backbone(model, "eager"), reference, 2) < 1e-5


def test_a_wrong_mask_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    reference = torch.nn.Module.to(copy.deepcopy(model), torch.float64)
    backbone = build_backbone(model, "eager")
    whole = vars(TreeBatch)["ancestors"].func
    monkeypatch.setattr(TreeBatch, "ancestors", property(lambda trees: torch.ones_like(whole(trees))))
    assert accuracy.max_error(backbone, reference, 1) > accuracy.BOUNDS[torch.bfloat16]


def test_an_error_above_the_bound_fails_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "num_hidden_layers": 1}
    monkeypatch.setattr(accuracy, "_COMMON", accuracy._COMMON | common)
    monkeypatch.setattr(accuracy, "MODELS", {"llama": {"num_key_value_heads": 4}})
    monkeypatch.setattr(accuracy, "BOUNDS", {torch.float32: 0.0})
    with pytest.raises(EntMTPError, match=r"accuracy: 1 of 1 cells failed: llama in float32: .*of the largest logit"):
        accuracy.measure(Assignment("tiny", tmp_path, time.monotonic() + 600, dry=True))
    rows = read_record(tmp_path / "gpu-accuracy.json").tables[0].rows
    assert {row[-1] for row in rows} == {"FAIL"}
    assert "eager" in [row[2] for row in rows]


def test_tritons_kernels_alone_agree_with_float64() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from tests.helpers.triton_kernels import DEVICE

    errors = kernel_errors.kernel_errors(torch.float32, DEVICE, kernel_errors.DRY)
    assert len(errors) == 6
    assert all(error < kernel_errors.BOUNDS[torch.float32] for error in errors.values()), errors


def test_a_kernel_that_is_off_fails_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"gated product": 0.5, "add and norm": 1e-6}
    monkeypatch.setattr(kernel_errors, "kernel_errors", lambda *_: errors)
    table = Table(title="kernels", columns=accuracy.KERNEL_COLUMNS, rows=[])
    with pytest.raises(EntMTPError, match=r"^Triton's kernels in bfloat16: gated product above the bound 0\.02$"):
        accuracy._alone(table, torch.bfloat16, torch.device("cpu"), kernel_errors.DRY)
    assert [row[-1] for row in table.rows] == ["FAIL", "ok"]


def test_kernels_that_are_refused_leave_the_others_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "supported_kernels", lambda *_: ["triton", "eager"])

    def refused(model: Any, kernels: Kernels) -> Any:
        if kernels == "triton":
            raise EntMTPError("kernels: 'triton' are refused")
        return build_backbone(model, kernels)

    monkeypatch.setattr(accuracy, "_backbone", refused)
    table = Table(title="verification", columns=accuracy.COLUMNS, rows=[])
    with pytest.raises(EntMTPError, match="'triton' are refused"):
        accuracy._cell(table, "llama", torch.float32, torch.device("cpu"), 1)
    assert [(row[2], row[-1]) for row in table.rows] == [("triton", "FAIL"), ("eager", "ok")]


def test_numbers_that_are_none_fail() -> None:
    model = tiny_model("llama")
    reference = torch.nn.Module.to(copy.deepcopy(model), torch.float64)
    backbone = build_backbone(model, "eager")
    layer: Any = backbone.output_layer
    layer.weight.data[0] = float("nan")
    found = accuracy.max_error(backbone, reference, 2)
    assert found != found
