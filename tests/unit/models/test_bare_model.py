"""Weights without transformers' code: the names, values and angles that its model has."""

from pathlib import Path
from typing import Any

import pytest
import torch

from entmtp.models.bare_config import transformers_config
from entmtp.models.bare_model import BareModel
from entmtp.models.fingerprint import model_fingerprint
from entmtp.models.gguf.configuration import ARCHITECTURES
from entmtp.models.gguf.file import read_gguf
from entmtp.models.gguf.model import gguf_model
from entmtp.models.kernels.block_weight import named_weights
from entmtp.models.transformers_model import transformers_model
from tests.helpers.gguf_files import write_model

ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    "yarn": {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    },
}


def bare(folder: Path, architecture: str = "llama", format: str = "Q4_0", **changes: Any) -> BareModel:
    return gguf_model(read_gguf(write_model(folder / "model.gguf", architecture, format, **changes)))


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("format", ["F32", "Q4_0"])
def test_names_and_order_of_weights_are_transformers_own(architecture: str, format: str, tmp_path: Path) -> None:
    model = bare(tmp_path, architecture, format)
    theirs = transformers_model(model)
    ours, expected = named_weights(model), named_weights(theirs)
    assert [name for name, _ in ours] == [name for name, _ in expected]
    assert all(one is other for (_, one), (_, other) in zip(ours, expected, strict=True)), "the file is read once"
    assert model_fingerprint(model) == model_fingerprint(theirs)
    with torch.device("meta"):
        empty = type(theirs)(transformers_config(model.config))
    assert [name for name, _ in ours] == [name for name, _ in empty.named_parameters()]


@pytest.mark.parametrize("rope", list(ROPES))
def test_angles_have_the_bits_of_transformers(rope: str, tmp_path: Path) -> None:
    model = bare(tmp_path, **ROPES[rope])
    theirs: Any = transformers_model(model)
    positions = torch.arange(128)[None]
    states = torch.empty(0)
    assert model.model.rotary_emb.rope_type == theirs.model.rotary_emb.rope_type == rope
    for found, expected in zip(
        model.model.rotary_emb(states, positions), theirs.model.rotary_emb(states, positions), strict=True
    ):
        assert torch.equal(found, expected)


def test_transformers_model_is_made_once(tmp_path: Path) -> None:
    model = bare(tmp_path)
    assert transformers_model(model) is transformers_model(model)
