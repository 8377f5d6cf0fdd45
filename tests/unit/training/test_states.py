"""States of texts: the model's own, computed once, and again where what they were computed from has changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.states import States
from entmtp.settings import CorpusSettings
from entmtp.training.corpus import part_paths, read_corpus, read_part, write_corpus
from entmtp.training.states import read_states, write_states
from tests.helpers.eagle3_drafting import features_of
from tests.helpers.tiny_models import tiny_model

LAYERS = (1, 0)
SETTINGS = CorpusSettings(slots=3, max_new_tokens=6, part_tokens=20)


@pytest.fixture
def backbone() -> Backbone:
    return build_backbone(tiny_model("llama"))


@pytest.fixture
def texts(backbone: Backbone, prompts: list[list[int]], tmp_path: Path) -> Path:
    """A corpus of three parts."""
    folder = tmp_path / "corpus"
    write_corpus(backbone, prompts[:12], folder, SETTINGS)
    assert len(part_paths(folder)) == 3
    return folder


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the texts that a model reads."""
    read: list[int] = []
    prefill: Callable[..., States] = Backbone.prefill

    def counted(self: Backbone, ids: list[int], *arguments: Any) -> States:
        read.append(len(ids))
        return prefill(self, ids, *arguments)

    monkeypatch.setattr(Backbone, "prefill", counted)
    return read


def joined(folder: Path) -> States:
    return States.joined([read_states(path) for path in part_paths(folder)])


@pytest.mark.parametrize("layers", [(), LAYERS])
def test_states_are_the_models_own(layers: tuple[int, ...], backbone: Backbone, texts: Path) -> None:
    folder = write_states(backbone, texts, layers)
    states, begin = joined(folder), 0
    assert states.hidden.dtype == states.features.dtype == torch.bfloat16
    for text in read_corpus(texts):
        rows = slice(begin, begin := begin + len(text.tokens))
        with torch.inference_mode():
            hidden = backbone.model.base_model(input_ids=torch.tensor([text.tokens])).last_hidden_state[0]
        features = features_of(backbone.model, text.tokens, layers) if layers else hidden
        torch.testing.assert_close(states.hidden[rows].float(), hidden, atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(states.features[rows].float(), features, atol=1e-3, rtol=1e-2)
    assert begin == len(states.hidden)


def test_without_layers_the_features_take_no_room(backbone: Backbone, texts: Path) -> None:
    folder = write_states(backbone, texts, ())
    for path in part_paths(folder):
        assert list(load_file(path)) == ["hidden"]
        states = read_states(path)
        assert states.features is states.hidden
    assert write_states(backbone, texts, LAYERS) != folder, "each set of layers has its own"


def test_what_is_there_is_not_computed_again(backbone: Backbone, texts: Path, passes: list[int]) -> None:
    reports: list[tuple[int, int]] = []
    write_states(backbone, texts, LAYERS)
    assert len(passes) == 12
    write_states(backbone, texts, LAYERS, lambda *counts: reports.append(counts))
    assert len(passes) == 12
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupted_run_continues_after_its_last_part(backbone: Backbone, texts: Path, passes: list[int]) -> None:
    def interrupt(parts: int, of: int) -> None:
        if parts == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_states(backbone, texts, LAYERS, interrupt)
    assert len(passes) == sum(len(read_part(path)) for path in part_paths(texts)[:2]) < 12
    write_states(backbone, texts, LAYERS)
    assert sorted(passes) == sorted(len(text.tokens) for text in read_corpus(texts))


def test_another_models_states_are_computed_again(backbone: Backbone, texts: Path) -> None:
    before = joined(write_states(backbone, texts, LAYERS)).hidden.clone()
    other = build_backbone(tiny_model("llama", seed=1))
    after = joined(write_states(other, texts, LAYERS)).hidden
    assert not torch.allclose(before.float(), after.float(), atol=0.1)
    assert torch.equal(joined(write_states(backbone, texts, LAYERS)).hidden, before)


def test_a_part_that_has_other_texts_is_computed_again(
    backbone: Backbone, prompts: list[list[int]], texts: Path, tmp_path: Path, passes: list[int]
) -> None:
    write_states(backbone, texts, LAYERS)
    write_corpus(backbone, prompts[20:24], tmp_path / "other", SETTINGS)
    part_paths(tmp_path / "other")[0].replace(changed := part_paths(texts)[1])
    passes.clear()
    folder = write_states(backbone, texts, LAYERS)
    assert passes == [len(text.tokens) for text in read_part(changed)]
    assert len(read_states(folder / changed.name).hidden) == sum(passes)


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_file_is_computed_again(damage: str, backbone: Backbone, texts: Path, passes: list[int]) -> None:
    folder = write_states(backbone, texts, LAYERS)
    path = part_paths(folder)[1]
    whole = [states.clone() for states in read_states(path)]
    path.write_bytes(path.read_bytes()[:-100] if damage == "cut" else b"not states")
    passes.clear()
    write_states(backbone, texts, LAYERS)
    assert all(map(torch.equal, read_states(path), whole))
    assert passes == [len(text.tokens) for text in read_part(part_paths(texts)[1])]


def test_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.safetensors"
    for write in (
        lambda: path.write_bytes(b"not states"),
        lambda: save_file({"tokens": torch.zeros(3)}, path),
        path.unlink,
    ):
        write()
        with pytest.raises(EntMTPError, match=rf"states: {path} can't be read \(.*\); remove it, and it is computed"):
            read_states(path)
