from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import KINDS, load_heads
from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import TrainingSettings
from entmtp.training.dataset import Dataset
from entmtp.training.evaluate import measure_accuracy
from entmtp.training.trainer import IGNORED, Progress, Trainer, new_heads
from tests.helpers.tiny_models import VOCAB, tiny_model

every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def settings(**changes: Any) -> TrainingSettings:
    small = {
        "num_heads": 2,
        "inner_size": 24,
        "draft_vocab_size": 64,
        "epochs": 3,
        "batch_size": 64,
        "learning_rate": 5e-3,
        "warmup_steps": 5,
        "frequent_candidates": 16,
        "random_candidates": 16,
        "held_out_share": 0.2,
        "checkpoint_every": 7,
    }
    return TrainingSettings.parse(**(small | changes))


def interrupt_at(step: int) -> Any:
    def report(progress: Progress) -> None:
        if progress.step >= step:
            raise KeyboardInterrupt

    return report


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@every_kind
def test_training_learns_and_what_it_learnt_loads(
    kind: str, backbone: Backbone, dataset: Dataset, tmp_path: Path
) -> None:
    reports: list[Progress] = []
    chosen = settings(kind=kind, epochs=8)
    untrained = new_heads(backbone, dataset, chosen).attach(backbone)
    before = measure_accuracy(untrained, dataset, dataset.held_out).shares

    heads = Trainer(backbone, dataset, chosen, tmp_path / "checkpoint").train(reports.append)

    assert reports[-1].step == reports[-1].steps == 8 * -(-len(dataset.train) // 64)
    assert reports[-1].loss < 0.8 * reports[0].loss
    epochs = [report for report in reports if report.accuracy]
    assert [report.step for report in epochs] == [report.steps // 8 * epoch for epoch, report in enumerate(epochs, 1)]
    last = epochs[-1].accuracy
    assert last is not None
    commonest = float((dataset.tokens[dataset.held_out] == untrained.draft_vocab[0]).float().mean())
    for head in range(2):
        assert last.shares[head][0] > 0.5 > 10 * max(commonest, before[head][0])
    heads.save_pretrained(tmp_path / "heads")
    loaded = load_heads(tmp_path / "heads", backbone)
    assert isinstance(loaded, StatelessHeads)
    assert measure_accuracy(loaded, dataset, dataset.held_out) == last


@pytest.fixture(scope="module")
def whole(kind: str, backbone: Backbone, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> StatelessHeads:
    """Heads of a training that nothing interrupted."""
    return Trainer(backbone, dataset, settings(kind=kind), tmp_path_factory.mktemp("whole")).train()


@pytest.mark.parametrize("kind", sorted(KINDS), scope="module")
@pytest.mark.parametrize("step", [1, 20, 60], ids=["before a checkpoint", "within an epoch", "in a later epoch"])
def test_an_interrupted_training_ends_with_the_same_bits(
    kind: str, step: int, whole: StatelessHeads, backbone: Backbone, dataset: Dataset, tmp_path: Path
) -> None:
    chosen = settings(kind=kind)
    if step > 1:
        with pytest.raises(KeyboardInterrupt):
            Trainer(backbone, dataset, chosen, tmp_path / "cut").train(interrupt_at(step))
    torch.randn(3)  # the global random state is not part of it
    resumed = Trainer(backbone, dataset, chosen, tmp_path / "cut")
    assert same_weights(resumed.train(), whole)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["checkpoint.pt"]


def test_the_same_settings_give_the_same_bits_and_others_do_not(
    backbone: Backbone, dataset: Dataset, tmp_path: Path
) -> None:
    runs = [
        Trainer(backbone, dataset, settings(epochs=1, seed=seed), tmp_path / str(number)).train()
        for number, seed in enumerate((0, 0, 1))
    ]
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_a_finished_training_reports_its_end_again(backbone: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    first: list[Progress] = []
    again: list[Progress] = []
    whole = Trainer(backbone, dataset, settings(), tmp_path).train(first.append)
    assert same_weights(Trainer(backbone, dataset, settings(), tmp_path).train(again.append), whole)
    assert again == first[-1:]


def test_a_checkpoint_of_another_training_is_refused(
    backbone: Backbone, dataset: Dataset, corpus: Path, tmp_path: Path
) -> None:
    Trainer(backbone, dataset, settings(epochs=1), tmp_path).train()
    others = {
        "settings": Trainer(backbone, dataset, settings(epochs=2), tmp_path),
        "corpus": Trainer(backbone, Dataset([corpus, corpus], 0.2), settings(epochs=1), tmp_path),
        "model": Trainer(build_backbone(tiny_model("llama", seed=1)), dataset, settings(epochs=1), tmp_path),
    }
    for trainer in others.values():
        with pytest.raises(
            EntMTPError, match=r"checkpoint\.pt was made with other settings, another corpus or another"
        ):
            trainer.train()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"\x80\x04cos\nsystem\n."], ids=["empty", "text", "code"]
)
def test_an_unreadable_checkpoint_is_refused(
    content: bytes, backbone: Backbone, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(EntMTPError, match=r"checkpoint\.pt can't be read"):
        Trainer(backbone, dataset, settings(), tmp_path).train()


def test_a_corpus_of_another_hidden_size_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match="states have 32 units but the model's have 48"):
        Trainer(build_backbone(tiny_model("llama", hidden_size=48)), dataset, settings(), tmp_path)


def test_a_half_precision_model_trains_in_float32(dataset: Dataset, tmp_path: Path) -> None:
    backbone = build_backbone(tiny_model("llama", dtype=torch.bfloat16))
    reports: list[Progress] = []
    heads = Trainer(backbone, dataset, settings(epochs=1), tmp_path).train(reports.append)
    assert {parameter.dtype for parameter in heads.parameters()} == {torch.float32}
    assert reports[-1].accuracy is not None


@every_kind
@pytest.mark.parametrize("model_type", ["llama", "phi"])
@pytest.mark.parametrize("distillation", [0.0, 1.0])
def test_with_every_candidate_the_loss_is_the_full_one(
    kind: str, model_type: str, distillation: float, dataset: Dataset, tmp_path: Path
) -> None:
    backbone = build_backbone(tiny_model(model_type))
    chosen = settings(kind=kind, distillation=distillation, frequent_candidates=64)
    trainer = Trainer(backbone, dataset, chosen, tmp_path)
    positions = dataset.train[:50]
    batch = dataset.batch(positions, 2)
    vocab = trainer.heads.draft_vocab.long()
    with torch.inference_mode():
        states = trainer.heads.teacher_forced(batch.states[:, 0].float(), batch.tokens[:, :-1])
        student = backbone.logits(states)[..., vocab].log_softmax(-1)
        teacher = backbone.logits(batch.states[:, 1:].float())[..., vocab].log_softmax(-1)
    if distillation:
        expected = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)[batch.valid].mean()
    else:
        known = [
            student[row, head, vocab.tolist().index(token)]
            for row, tokens in enumerate(batch.tokens[:, 1:].tolist())
            for head, token in enumerate(tokens)
            if batch.valid[row, head] and token in vocab.tolist()
        ]
        expected = -torch.stack(known).mean()
    torch.testing.assert_close(trainer._loss(positions).detach(), expected, atol=1e-4, rtol=1e-4)


def test_random_candidates_stand_for_those_left_out(backbone: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    trainer = Trainer(backbone, dataset, settings(), tmp_path)
    labels = torch.tensor([[60, IGNORED], [3, 40]])
    sure = [*range(16), 40, 60]
    draws = [trainer._candidates(labels) for _ in range(5)]
    for candidates, correction in draws:
        assert candidates.tolist() == sorted(set(candidates.tolist()))
        assert len(candidates) == len(sure) + 16
        assert set(sure) <= set(candidates.tolist())
        assert correction[torch.isin(candidates, torch.tensor(sure))].eq(0).all()
        # With equal logits, the partition function is that of the whole draft vocabulary.
        torch.testing.assert_close(correction.exp().sum(), torch.tensor(64.0))
    assert len({tuple(candidates.tolist()) for candidates, _ in draws}) > 1


def test_batches_without_a_label_do_no_harm(
    backbone: Backbone, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(epochs=1, batch_size=2, draft_vocab_size=16)
    guessable = torch.isin(dataset.tokens, dataset.frequent_tokens(16, VOCAB).long())
    batch = dataset.batch(dataset.train, 2)
    labelled = torch.isin(batch.tokens[:, 1:], dataset.tokens[guessable]) & batch.valid
    without = copy(dataset)
    without.train = dataset.train[~labelled.any(1)][:30]
    monkeypatch.setattr(without, "frequent_tokens", dataset.frequent_tokens)
    assert len(without.train) > 2
    heads = Trainer(backbone, without, chosen, tmp_path).train()
    assert all(parameter.isfinite().all() for parameter in heads.parameters())
