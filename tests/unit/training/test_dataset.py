from pathlib import Path

import pytest
import torch

from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import KINDS
from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import CorpusSettings
from entmtp.training.corpus import part_paths, read_part, write_corpus
from entmtp.training.dataset import Dataset
from entmtp.training.evaluate import TOP, measure_accuracy
from tests.helpers.tiny_models import VOCAB, random_heads, tiny_model

AHEAD = 4


def answer_of(dataset: Dataset) -> torch.Tensor:
    """The number of the answer that each token belongs to."""
    return torch.unique(dataset.end_of, return_inverse=True)[1]


def test_a_batch_holds_what_follows_and_marks_the_answers_end(dataset: Dataset) -> None:
    positions = torch.cat([dataset.train, dataset.held_out])
    batch = dataset.batch(positions, AHEAD)
    owner = answer_of(dataset)
    for row, position in enumerate(positions.tolist()):
        assert batch.tokens[row, 0] == dataset.tokens[position]
        assert batch.valid[row, 0], "a position with nothing after it teaches nothing"
        for ahead in range(1, AHEAD + 1):
            inside = position + ahead < len(owner) and bool(owner[position] == owner[position + ahead])
            assert batch.valid[row, ahead - 1] == inside
            if inside:
                assert batch.tokens[row, ahead] == dataset.tokens[position + ahead]
                assert torch.equal(batch.states[row, ahead], dataset.states[position + ahead])


def test_an_answer_is_on_one_side_only_and_every_position_is_used(dataset: Dataset, corpus: Path) -> None:
    owner = answer_of(dataset)
    train, held_out = set(owner[dataset.train].tolist()), set(owner[dataset.held_out].tolist())
    assert train.isdisjoint(held_out)
    assert len(train | held_out) == dataset.answers == 80
    assert len(dataset.train) + len(dataset.held_out) == len(dataset.tokens) - dataset.answers
    assert 4 <= len(held_out) <= 36
    assert sum(len(read_part(path).tokens) for path in part_paths(corpus)) == len(dataset.tokens)


def test_frequent_tokens_come_first(dataset: Dataset) -> None:
    tokens = dataset.frequent_tokens(VOCAB, VOCAB)
    counts = torch.bincount(dataset.tokens[dataset.train], minlength=VOCAB)[tokens.long()]
    assert sorted(tokens.tolist()) == list(range(VOCAB))
    assert torch.equal(counts, counts.sort(descending=True).values)
    assert torch.equal(dataset.frequent_tokens(5, VOCAB), tokens[:5])


def test_several_folders_are_one_corpus(corpus: Path, dataset: Dataset) -> None:
    twice = Dataset([corpus, corpus], held_out_share=0.2)
    assert len(twice.train) == 2 * len(dataset.train)
    assert twice.fingerprint != dataset.fingerprint


def test_unusable_corpora_are_named(backbone: Backbone, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match=rf"no part-\*\.safetensors in {tmp_path}"):
        Dataset([tmp_path], 0.2)
    short = CorpusSettings(slots=1, max_new_tokens=4)
    write_corpus(backbone, [[5, 6]], tmp_path / "one", short)
    with pytest.raises(EntMTPError, match=r"1 answers are too few to hold out a share of 0\.2"):
        Dataset([tmp_path / "one"], 0.2)
    write_corpus(build_backbone(tiny_model("llama", hidden_size=48)), [[5, 6]], tmp_path / "wide", short)
    with pytest.raises(EntMTPError, match=r"hidden sizes \[32, 48\]"):
        Dataset([corpus, tmp_path / "wide"], 0.2)


@pytest.fixture(params=sorted(KINDS))
def heads(request: pytest.FixtureRequest, backbone: Backbone) -> StatelessHeads:
    return random_heads(request.param, backbone).attach(backbone)


@torch.inference_mode()
def test_accuracy_counts_guesses_that_hold_the_true_token(heads: StatelessHeads, dataset: Dataset) -> None:
    scores = measure_accuracy(heads, dataset, dataset.held_out)
    hits = torch.zeros(heads.num_heads, len(TOP))
    seen = torch.zeros(heads.num_heads)
    for position in dataset.held_out.tolist():
        batch = dataset.batch(torch.tensor([position]), heads.num_heads)
        states = heads.teacher_forced(batch.states[:, 0].float(), batch.tokens[:, :-1])[0]
        for head in range(int(batch.valid.sum())):
            ranking = heads.draft_vocab[heads.draft_logits(states[head]).argsort(descending=True)].tolist()
            seen[head] += 1
            hits[head] += torch.tensor([int(batch.tokens[0, head + 1]) in ranking[:top] for top in TOP])
    expected = (hits / seen[:, None]).tolist()
    assert scores.positions == len(dataset.held_out)
    assert scores.shares == pytest.approx([pytest.approx(row) for row in expected])
    assert scores.metrics()["head2_top5"] == pytest.approx(expected[1][1])
    assert len(scores.metrics()) == heads.num_heads * len(TOP)


@pytest.mark.parametrize("limit", [1, 7, 50, 10_000])
def test_accuracy_is_measured_at_no_more_positions_than_the_limit(
    limit: int, backbone: Backbone, dataset: Dataset
) -> None:
    heads = random_heads("medusa", backbone).attach(backbone)
    seen = measure_accuracy(heads, dataset, dataset.train, limit).positions
    assert min(limit, len(dataset.train)) / 2 <= seen <= limit
