import pytest
import torch

from entmtp.settings import TrainingSettings
from entmtp.training.sampled_softmax import IGNORED, Candidates, divergence_and_cross_entropy

VOCABULARY = 64
FEW = TrainingSettings(frequent_candidates=16, random_candidates=16)


def test_random_candidates_stand_for_those_left_out() -> None:
    randomness = torch.Generator().manual_seed(0)
    labels = torch.tensor([[60, IGNORED], [3, 40]])
    sure = [*range(16), 40, 60]
    draws = [Candidates.sample(VOCABULARY, labels, FEW, randomness) for _ in range(5)]
    for each in draws:
        indices = each.indices.tolist()
        assert indices == sorted(set(indices))
        assert len(indices) == len(sure) + 16
        assert set(sure) <= set(indices)
        assert each.correction[torch.isin(each.indices, torch.tensor(sure))].eq(0).all()
        # With equal logits, the partition function is that of the whole draft vocabulary.
        torch.testing.assert_close(each.correction.exp().sum(), torch.tensor(64.0))
    assert len({tuple(each.indices.tolist()) for each in draws}) > 1


def test_with_enough_candidates_none_is_left_out() -> None:
    enough = FEW.model_copy(update={"random_candidates": VOCABULARY})
    every = Candidates.sample(VOCABULARY, torch.tensor([5]), enough, torch.Generator())
    assert every.indices.tolist() == list(range(VOCABULARY))
    assert every.correction.eq(0).all()


def test_targets_are_positions_among_the_candidates() -> None:
    labels = torch.tensor([[60, IGNORED], [3, 40]])
    candidates = Candidates.sample(VOCABULARY, labels, FEW, torch.Generator().manual_seed(1))
    targets = candidates.targets(labels)
    assert targets[0, 1] == IGNORED
    known = labels != IGNORED
    assert torch.equal(candidates.indices[targets[known]], labels[known])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_a_mean_over_the_valid_positions(share: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 9), torch.randn(6, 9)
    targets = torch.tensor([3, IGNORED, 8, 0, IGNORED, 2])
    valid = torch.tensor([True, True, False, True, False, True])
    loss = divergence_and_cross_entropy(student, teacher, targets, valid, share)
    q, p = student.softmax(-1), teacher.softmax(-1)
    divergence = (p * (p / q).log()).sum(-1)[valid].mean()
    cross_entropy = -torch.stack([q[0, 3], q[3, 0], q[5, 2]]).log().mean()
    torch.testing.assert_close(loss, share * divergence + (1 - share) * cross_entropy)


@pytest.mark.parametrize("positions", [0, 3])
def test_nothing_to_learn_is_no_loss(positions: int) -> None:
    student = torch.randn(positions, 4, requires_grad=True)
    nothing = torch.full((positions,), IGNORED), torch.zeros(positions, dtype=torch.bool)
    loss = divergence_and_cross_entropy(student, torch.randn(positions, 4), *nothing, share=0.5)
    assert loss == 0
    loss.backward()
    assert student.grad is not None
    assert student.grad.eq(0).all()
