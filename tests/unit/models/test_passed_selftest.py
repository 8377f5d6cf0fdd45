"""The comparison with transformers' model: made once, and again where anything that it depends on has changed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from entmtp.errors import EntMTPError
from entmtp.models import build, passed_selftest
from entmtp.models.build import build_backbone
from entmtp.models.fused_backbone import FusedBackbone
from entmtp.models.gguf.file import read_gguf
from entmtp.models.gguf.model import gguf_model
from entmtp.models.kernels import compiled
from entmtp.models.loading.load import load_weights
from entmtp.models.passed_selftest import PassedSelftest
from tests.helpers.gguf_files import write_model

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")

Build = Callable[[], str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the remembered passes, in a cache of the test's own."""
    monkeypatch.setattr(passed_selftest, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "selftests"


@pytest.fixture
def made(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds the backbone of a small model; says how, and whether it was compared with transformers' model."""
    path, compared = str(write_model(tmp_path / "model.gguf", "llama", "Q4_1")), [0]
    expected = build._expected

    def counted(backbone: FusedBackbone) -> torch.Tensor:
        compared[0] += 1
        return expected(backbone)

    monkeypatch.setattr(build, "_expected", counted)

    def build_it() -> str:
        compared[0] = 0
        backbone = build_backbone(load_weights(path)[0])
        return f"{type(backbone).__name__}, {'compared' if compared[0] else 'not compared'}"

    return build_it


COMPARED, REMEMBERED = "FusedBackbone, compared", "FusedBackbone, not compared"


def test_a_pass_is_remembered(made: Build, folder: Path) -> None:
    assert made() == COMPARED
    assert len(list(folder.iterdir())) == 1
    assert made() == REMEMBERED


@pytest.mark.parametrize("text", ["", "passed\n", "\udcff"])
def test_a_damaged_file_means_another_comparison(text: str, made: Build, folder: Path) -> None:
    made()
    (file,) = folder.iterdir()
    whole = file.read_text(encoding="utf-8")
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert made() == COMPARED
    assert file.read_text(encoding="utf-8") == whole
    assert made() == REMEMBERED


def test_a_folder_that_can_not_be_written_means_another_comparison(made: Build, folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be", encoding="utf-8")
    assert [made(), made()] == [COMPARED, COMPARED]


def test_every_condition_counts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def conditions(**changes: Any) -> tuple[str, ...]:
        path = write_model(tmp_path / "model.gguf", "llama", **({"format": "Q4_1"} | changes))
        return PassedSelftest.of(gguf_model(read_gguf(path)), "fused", "fingerprint").conditions

    usual = conditions()
    assert conditions() == usual
    assert conditions(format="Q8_0") != usual
    for change in ({"llama.rope.freq_base": 5000.0}, {"llama.attention.layer_norm_rms_epsilon": 1e-6}):
        assert conditions(**change) != usual
    model, of = gguf_model(read_gguf(tmp_path / "model.gguf")), PassedSelftest.of
    first = of(model, "fused", "fingerprint")
    model.model.rotary_emb.inv_freq = 2 * model.model.rotary_emb.inv_freq  # as by a file's factors
    assert of(model, "fused", "fingerprint") != first
    first = of(model, "fused", "fingerprint")
    assert of(model, "fused-int8", "fingerprint") != first
    source: Any = gguf_model(read_gguf(write_model(tmp_path / "other.gguf", "llama", "Q8_0")))
    layers: Any = model.model.layers
    mixed = []
    for layer in (layers[0].self_attn, layers[1].self_attn):  # the same formats, of other layers
        own, layer.v_proj = layer.v_proj, source.model.layers[0].self_attn.v_proj
        mixed.append(of(model, "fused", "fingerprint"))
        layer.v_proj = own
    assert len({first, *mixed}) == 3
    assert of(model, "fused", "another") != first
    own = "entmtp.models.passed_selftest"
    others = {
        "importlib.metadata.version": lambda package: "0",
        f"{own}._sources": lambda: "other",
        f"{own}.library": _OtherLibrary,
    }
    for name, other in others.items():
        with monkeypatch.context() as patch:
            patch.setattr(name, other)
            assert of(model, "fused", "fingerprint") != first, name
    first.remember()
    assert first.is_remembered()
    for index in range(len(first.conditions)):
        changed = [*first.conditions]
        changed[index] += " "
        assert not dataclasses.replace(first, conditions=tuple(changed)).is_remembered()


class _OtherLibrary:
    _name = "/cache/kernels/fused-other.so"

    def __init__(self, formats: object) -> None:
        pass


def test_a_difference_from_transformers_model_is_not_remembered(
    made: Build, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build._expected
    monkeypatch.setattr(build, "_expected", lambda backbone: 1.1 * expected(backbone))
    assert made().startswith("TransformersBackbone")
    assert not folder.exists()


def test_dependence_on_other_tokens_is_found_at_every_load(made: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    made()
    extend = FusedBackbone.extend
    monkeypatch.setattr(FusedBackbone, "extend", lambda *arguments: 1.1 * extend(*arguments))
    assert made() == "TransformersBackbone, not compared"


def test_a_model_that_transformers_can_not_run_says_why(
    made: Build, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **named: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaForCausalLM.forward", fails)
    with pytest.raises(EntMTPError, match="a plain pass raised RuntimeError: no such operator"):
        made()
    assert not folder.exists()
