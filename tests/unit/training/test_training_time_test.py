"""States of the training-time test are those of drafting along the true text."""

import pytest
import torch

from entmtp.calibration.build import read_text
from entmtp.heads.eagle3.heads import Eagle3Heads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import TrainingSettings
from entmtp.training.corpus import Text
from entmtp.training.dataset import TextWithStates
from entmtp.training.eagle3 import Eagle3Trainer, new_eagle3_heads
from entmtp.training.training_time_test import TextBatch, level_states
from tests.helpers.tiny_models import random_tokens, tiny_model

LEVELS = 4
LENGTHS = [(5, 9), (2, 3), (11, 6)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(tiny_model("llama", num_hidden_layers=7))


@pytest.fixture(scope="module")
def texts(backbone: Backbone) -> list[TextWithStates]:
    found = []
    for prompt, answer in LENGTHS:
        text = Text(random_tokens(prompt, seed=prompt), random_tokens(answer, seed=answer))
        cache = backbone.new_cache(slots=1, capacity=32)
        states = backbone.prefill(text.tokens, 0, cache, Eagle3Trainer.feature_layers(backbone))
        found.append(TextWithStates(text, states))
    return found


@pytest.fixture(scope="module")
def heads(backbone: Backbone) -> Eagle3Heads:
    torch.manual_seed(0)
    made = new_eagle3_heads(backbone, TrainingSettings(kind="eagle3", draft_vocab_size=64, num_heads=LEVELS))
    assert made.weights.features_norm is not None
    for norm in (made.weights.norm, made.weights.features_norm):
        torch.nn.init.uniform_(norm, 0.5, 1.5)
    torch.nn.init.normal_(made.weights.fc, std=0.1)
    return made.attach(backbone)


@torch.inference_mode()
def test_states_are_those_of_drafting(backbone: Backbone, heads: Eagle3Heads, texts: list[TextWithStates]) -> None:
    batch = TextBatch.of(texts, backbone.device)
    levels = torch.stack(list(level_states(heads, batch, LEVELS)), dim=2)
    for row, each in enumerate(texts):
        answer = torch.tensor(each.text.answer)
        traced, hidden = read_text(backbone, heads, each.text)
        for entry in range(len(answer) - 1):
            for level in range(min(entry + 1, LEVELS)):
                root = entry - level
                chain = answer[root : root + LEVELS]
                chain = torch.nn.functional.pad(chain, (0, LEVELS - len(chain)))
                expected = traced.teacher_forced(torch.tensor([root]), chain[None])[0, level]
                torch.testing.assert_close(levels[row, entry, level], expected, atol=1e-5, rtol=1e-4)
                assert batch.valid_at(level)[row, entry]
            assert batch.labels[row, entry] == answer[entry + 1]
            torch.testing.assert_close(batch.hidden[row, entry], hidden[entry + 1])
        assert int(batch.valid[row].sum()) == len(answer) - 1


def test_gradients_reach_every_weight(backbone: Backbone, heads: Eagle3Heads, texts: list[TextWithStates]) -> None:
    heads.train()
    last = list(level_states(heads, TextBatch.of(texts, backbone.device), LEVELS))[-1]
    heads.output_states(last).square().sum().backward()
    assert all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in heads.parameters())
    heads.eval()
