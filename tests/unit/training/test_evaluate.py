import pytest
import torch

from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.training.dataset import Dataset, Positions
from entmtp.training.evaluate import TOP, TopCounts, measure_accuracy
from tests.helpers.tiny_models import STATELESS_KINDS, random_heads


@pytest.fixture(params=STATELESS_KINDS)
def heads(request: pytest.FixtureRequest, backbone: Backbone) -> StatelessHeads:
    return random_heads(request.param, backbone).attach(backbone)


@torch.inference_mode()
def test_accuracy_counts_guesses_that_hold_the_true_token(heads: StatelessHeads, dataset: Dataset) -> None:
    held_out = Positions.of(dataset.held_out)
    scores = measure_accuracy(heads, held_out)
    hits = torch.zeros(heads.num_heads, len(TOP))
    seen = torch.zeros(heads.num_heads)
    for position in held_out.usable.tolist():
        batch = held_out.batch(torch.tensor([position]), heads.num_heads)
        states = heads.teacher_forced(batch.states[:, 0].float(), batch.tokens[:, :-1])[0]
        for head in range(int(batch.valid.sum())):
            ranking = heads.draft_vocab[heads.draft_logits(states[head]).argsort(descending=True)].tolist()
            seen[head] += 1
            hits[head] += torch.tensor([int(batch.tokens[0, head + 1]) in ranking[:top] for top in TOP])
    expected = (hits / seen[:, None]).tolist()
    assert scores.positions == len(held_out.usable)
    assert scores.shares == pytest.approx([pytest.approx(row) for row in expected])
    assert scores.metrics()["head2_top5"] == pytest.approx(expected[1][1])
    assert len(scores.metrics()) == heads.num_heads * len(TOP)


@pytest.mark.parametrize("limit", [1, 7, 50, 10_000])
def test_accuracy_is_measured_at_no_more_positions_than_the_limit(
    limit: int, backbone: Backbone, dataset: Dataset
) -> None:
    heads = random_heads("medusa", backbone).attach(backbone)
    train = Positions.of(dataset.train)
    seen = measure_accuracy(heads, train, limit).positions
    assert min(limit, len(train.usable)) / 2 <= seen <= limit


def test_counts_add_up_over_batches_and_depths() -> None:
    counts = TopCounts(3)
    hit_at = torch.tensor([0, 4, 5, 9, 99])
    ranks = torch.arange(TopCounts.widest)
    counts.add(0, ranks == hit_at[:2, None])
    counts.add(0, ranks == hit_at[2:, None])
    counts.add(1, ranks == hit_at[:1, None])
    counts.add(1, ranks == hit_at[:0, None])
    found = counts.accuracy()
    assert found.positions == 5
    assert found.shares[0] == pytest.approx((1 / 5, 2 / 5, 4 / 5))
    assert [set(row) for row in found.shares[1:]] == [{1.0}, {0.0}], "nothing was guessed at the last depth"
