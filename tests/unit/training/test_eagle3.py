"""Training of EAGLE-3 heads: loss and accuracy are those of drafting along the true text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from entmtp.errors import EntMTPError
from entmtp.heads.eagle3.heads import Eagle3Heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import TrainingSettings
from entmtp.training.dataset import Dataset, TextWithStates
from entmtp.training.eagle3 import Eagle3Trainer, new_eagle3_heads
from entmtp.training.evaluate import TOP
from entmtp.training.training_time_test import TextBatch, level_states
from tests.helpers.tiny_models import SUPPORTED, tiny_model
from tests.unit.training.conftest import LAYERS

DEPTHS = 3


def settings(**changes: Any) -> TrainingSettings:
    small = {"kind": "eagle3", "num_heads": DEPTHS, "levels": DEPTHS, "draft_vocab_size": 64, "held_out_share": 0.2}
    return TrainingSettings.parse(**(small | changes))


def trainer_of(backbone: Backbone, dataset: Dataset, folder: Path, **changes: Any) -> Eagle3Trainer:
    """A trainer whose heads have left their beginning."""
    trainer = Eagle3Trainer(backbone, dataset, settings(**changes), folder / "checkpoint.pt")
    generator = torch.Generator().manual_seed(0)
    for parameter in trainer.heads.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return trainer


def guesses(
    heads: Eagle3Heads, texts: Sequence[TextWithStates]
) -> Iterator[tuple[int, torch.Tensor, int, torch.Tensor]]:
    """Each guess along the true texts: its level, what it is made of, the true token, and the state that chose that."""
    for each in texts:
        answer, prompt = torch.tensor(each.text.answer), len(each.text.prompt)
        traced = heads.traced_text(each.states.features.float(), torch.tensor(each.text.tokens), prompt)
        for root in range(len(answer) - 1):
            depths = min(DEPTHS, len(answer) - 1 - root)
            chain = functional.pad(answer[root : root + DEPTHS], (0, max(0, DEPTHS - len(answer) + root)))
            states = traced.teacher_forced(torch.tensor([root]), chain[None])[0]
            for level in range(depths):
                at = root + level
                yield level, states[level], int(answer[at + 1]), each.states.hidden[prompt + at].float()


@pytest.mark.parametrize("model_type", ["llama", "phi"])
@pytest.mark.parametrize("distillation", [0.0, 1.0])
def test_with_every_candidate_the_loss_is_the_full_one(
    model_type: str, distillation: float, dataset: Dataset, tmp_path: Path
) -> None:
    backbone = build_backbone(tiny_model(model_type, num_hidden_layers=LAYERS))
    trainer = trainer_of(backbone, dataset, tmp_path, distillation=distillation, frequent_candidates=64)
    heads, losses = trainer.heads, [list[torch.Tensor]() for _ in range(DEPTHS)]
    vocab = heads.draft_vocab.tolist()
    with torch.inference_mode():
        for level, state, token, hidden in guesses(heads, dataset.train[:3]):
            student = backbone.logits(heads.output_states(state))[vocab].log_softmax(-1)
            teacher = backbone.logits(hidden)[vocab].log_softmax(-1)
            if distillation:
                losses[level].append(functional.kl_div(student, teacher, reduction="sum", log_target=True))
            elif token in vocab:
                losses[level].append(-student[vocab.index(token)])
    means = torch.stack([torch.stack(each).mean() for each in losses])
    expected = means.cumsum(0) / torch.arange(1, DEPTHS + 1)
    found = torch.stack([trainer.loss_of(torch.arange(3)).detach() for _ in range(30)])
    drawn = (found[:, None] - expected).abs().argmin(1)
    torch.testing.assert_close(found, expected[drawn], atol=1e-4, rtol=1e-4)
    assert drawn.unique().tolist() == list(range(DEPTHS)), "each step trains a number of levels of its own"


@torch.inference_mode()
def test_untrained_heads_hand_on_the_highest_state(backbone: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    trainer = Eagle3Trainer(backbone, dataset, settings(), tmp_path / "checkpoint.pt")
    states = torch.cat([each.states.features for each in dataset.train]).float()
    hidden = torch.cat([each.states.hidden for each in dataset.train]).float()
    inputs = trainer.heads.layers.inputs(states)
    highest = functional.rms_norm(states[:, -backbone.hidden_size :], (backbone.hidden_size,), eps=1e-5)
    torch.testing.assert_close(inputs, highest, atol=1e-4, rtol=1e-4)
    weights = trainer.heads.weights.norm
    error = (inputs * weights - hidden).square().sum()
    for factor in (0.98, 1.02):
        assert error < (inputs * weights * factor - hidden).square().sum()
    batch = TextBatch.of(dataset.train[:3], torch.device("cpu"))
    first = next(level_states(trainer.heads, batch, DEPTHS))
    assert torch.equal(first, batch.rows(trainer.heads.layers.inputs(batch.features)))


@torch.inference_mode()
def test_accuracy_counts_guesses_that_hold_the_true_token(backbone: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(backbone, dataset, tmp_path)
    heads, hits, seen = trainer.heads, torch.zeros(DEPTHS, len(TOP)), torch.zeros(DEPTHS)
    scores = trainer.accuracy()
    assert heads.training, "it is measured in the midst of a training"
    heads.eval()
    for level, state, token, _ in guesses(heads, dataset.held_out):
        ranking = heads.draft_vocab[heads.draft_logits(state).argsort(descending=True)].tolist()
        seen[level] += 1
        hits[level] += torch.tensor([token in ranking[:top] for top in TOP])
    expected = (hits / seen[:, None]).tolist()
    assert 0 < hits[0, 0] < hits[0, -1]
    assert scores.shares == pytest.approx([pytest.approx(row, abs=2e-3) for row in expected])
    assert scores.positions == seen[0]


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_heads_have_the_models_own_shape(model_type: str) -> None:
    # GPT-2's configuration has none of these.
    absent = ("num_key_value_heads", "head_dim", "intermediate_size") if model_type == "gpt2" else ()
    changes: dict[str, Any] = {"num_hidden_layers": 8, "layer_types": None} | dict.fromkeys(absent)
    backbone = build_backbone(tiny_model(model_type, **changes))
    config = new_eagle3_heads(backbone, settings()).config
    assert config.feature_layers == [2, 4, 5] == list(Eagle3Trainer.feature_layers(backbone))
    assert (config.num_attention_heads, config.head_dim) == (4, 8)
    assert config.num_key_value_heads == (4 if model_type == "gpt2" else backbone.config.num_key_value_heads)
    assert config.intermediate_size == (128 if model_type == "gpt2" else 64)
    assert new_eagle3_heads(backbone, settings(inner_size=24)).config.intermediate_size == 24
    assert new_eagle3_heads(backbone, TrainingSettings(kind="eagle3")).num_heads == 8


@pytest.mark.parametrize("layers", [1, 2, 5, 6])
def test_a_model_that_is_too_shallow_is_named(layers: int) -> None:
    backbone = build_backbone(tiny_model("llama", num_hidden_layers=layers))
    with pytest.raises(EntMTPError, match=f"a model of {layers} layers is too shallow for that; train hydra or medusa"):
        Eagle3Trainer.feature_layers(backbone)
