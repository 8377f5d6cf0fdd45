"""The optimizer of draft heads: Muon for matrices, AdamW for the rest."""

import pytest
import torch
from torch import nn

from entmtp.settings import TrainingSettings
from entmtp.training.optimizer import HeadsOptimizer

SETTINGS = TrainingSettings(learning_rate=0.01, weight_decay=0.0)


class Parameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(6, 24, generator=generator))
        self.other = nn.Parameter(torch.randn(6, 24, generator=generator))
        self.vector = nn.Parameter(torch.randn(5, generator=generator))

    def optimizer(self) -> HeadsOptimizer:
        return HeadsOptimizer(self.parameters(), [self.matrix], SETTINGS)

    def set_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_matrices_move_by_orthogonal_steps_and_others_by_adam(factor: float) -> None:
    module = Parameters()
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    module.set_gradients(1)
    gradients = {name: each.grad.sign() for name, each in module.named_parameters() if each.grad is not None}
    module.optimizer().step(factor)
    moved = {name: each.detach() - before[name] for name, each in module.named_parameters()}
    for name in ("other", "vector"):
        torch.testing.assert_close(moved[name], -0.01 * factor * gradients[name], atol=1e-6, rtol=1e-4)
    singular = torch.linalg.svdvals(moved["matrix"]) / (2 * 0.01 * factor * 0.2 * 24**0.5)
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    assert all(each.grad is None for each in module.parameters())


def test_a_saved_state_continues_with_the_same_bits() -> None:
    whole, cut = Parameters(), Parameters()
    optimizers = whole.optimizer(), cut.optimizer()
    for seed in (1, 2, 3):
        if seed == 3:
            resumed = cut.optimizer()
            resumed.load_state_dict(optimizers[1].state_dict())
            optimizers = optimizers[0], resumed
        for module, optimizer in zip((whole, cut), optimizers, strict=True):
            module.set_gradients(seed)
            optimizer.step(1.0)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_name_says_which_methods_are_used() -> None:
    module = Parameters()
    assert module.optimizer().name == "Muon and AdamW"
    assert HeadsOptimizer(module.parameters(), [], SETTINGS).name == "AdamW"
