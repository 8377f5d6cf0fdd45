"""A tiny model's own text, generated once for all training tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import CorpusSettings
from entmtp.training.corpus import write_corpus
from entmtp.training.dataset import Dataset
from entmtp.training.eagle3 import Eagle3Trainer
from entmtp.training.states import write_states
from tests.helpers.tiny_models import random_tokens, tiny_model

LAYERS = 7
"""So many that EAGLE-3 heads find a low, a middle and a high one."""
PROMPTS = [random_tokens(3 + number % 5, seed=number) for number in range(80)]


def orderly_model(**changes: Any) -> PreTrainedModel:
    """A model whose text has a rule to learn: each token has a likeliest successor."""
    model = tiny_model("llama", initializer_range=0.02, **changes)
    embeddings: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    torch.nn.init.normal_(embeddings.weight, generator=torch.Generator().manual_seed(0))
    output.weight.data = 0.2 * embeddings.weight.data.roll(1, dims=0)
    return model


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return build_backbone(orderly_model(num_hidden_layers=LAYERS))


@pytest.fixture
def prompts() -> list[list[int]]:
    return [list(ids) for ids in PROMPTS]


@pytest.fixture(scope="session")
def corpus(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "corpus"
    write_corpus(backbone, PROMPTS, folder, CorpusSettings(slots=40, max_new_tokens=32, part_tokens=700))
    return folder


@pytest.fixture(scope="session")
def dataset(backbone: Backbone, corpus: Path) -> Dataset:
    """The text with the states that any kind of heads reads."""
    return Dataset(corpus, write_states(backbone, corpus, Eagle3Trainer.feature_layers(backbone)), held_out_share=0.2)
