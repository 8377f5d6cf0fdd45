from typing import Any

import pytest
import torch

from entmtp.models.kernels.rotary_table import FIXED, RotaryTable
from tests.helpers.tiny_models import tiny_model

PARAMETERS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "dynamic": {"factor": 2.0},
    "longrope": {
        "factor": 2.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.2, 2.4, 2.6],
        "original_max_position_embeddings": 32,
    },
}


def rotary_module(rope_type: str) -> Any:
    parameters = {"rope_type": rope_type, "rope_theta": 10000.0, **PARAMETERS[rope_type]}
    model: Any = tiny_model("llama", rope_parameters=parameters, max_position_embeddings=64)
    return model.model.rotary_emb


@pytest.mark.parametrize("rope_type", PARAMETERS)
@torch.inference_mode()
def test_embeddings_have_the_bits_of_the_module(rope_type: str) -> None:
    table, module = RotaryTable(rotary_module(rope_type)), rotary_module(rope_type)
    # A text that grows past the original context and its table, and another that begins anew.
    for last in (0, 3, 40, 41, 150, 5):
        positions = torch.tensor([[last, 0, last // 2], [1, last, last]])[:, : 1 + last]
        values, rows = table.rows(positions, last + 1)
        cosines, sines = module(torch.empty(0), positions)
        assert torch.equal(values[rows.view(positions.shape)], torch.stack([cosines, sines], dim=-2))


@pytest.mark.parametrize("rope_type", PARAMETERS)
@torch.inference_mode()
def test_the_module_of_a_fixed_type_is_called_when_the_table_grows_only(rope_type: str) -> None:
    module, calls = rotary_module(rope_type), []
    module.register_forward_hook(lambda *_: calls.append(1))
    table = RotaryTable(module)
    for position in range(40):
        table.rows(torch.tensor([[position]]), position + 1)
    assert len(calls) == (5 if rope_type in FIXED else 40)
