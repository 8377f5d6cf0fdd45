"""Training of heads of every kind: it learns, continues where it was interrupted, and refuses what does not fit."""

import shutil
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import KINDS, load_heads
from entmtp.methods import EAGLE3
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import TrainingSettings
from entmtp.training.corpus import part_paths
from entmtp.training.dataset import Dataset, Positions
from entmtp.training.kinds import find_trainer
from entmtp.training.states import write_states
from entmtp.training.trainer import Progress, Trainer
from tests.helpers.tiny_models import STATELESS_KINDS, VOCAB, tiny_model
from tests.unit.training.conftest import LAYERS

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
        "levels": 3,
        "frequent_candidates": 16,
        "random_candidates": 16,
        "held_out_share": 0.2,
        "checkpoint_every": 7,
    }
    return TrainingSettings.parse(**(small | changes))


def trainer_of(backbone: Backbone, dataset: Dataset, chosen: TrainingSettings, folder: Path) -> Trainer[Any]:
    """The trainer of the settings' kind, with a checkpoint in ``folder``."""
    return find_trainer(chosen.kind)(backbone, dataset, chosen, folder / "checkpoint.pt")


def deep_backbone(model_type: str = "llama", **changes: Any) -> Backbone:
    """A backbone with enough layers for every kind."""
    return build_backbone(tiny_model(model_type, num_hidden_layers=LAYERS, **changes))


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
    trainer = trainer_of(backbone, dataset, settings(kind=kind, epochs=8), tmp_path)
    before = trainer.accuracy().shares

    heads = trainer.train(reports.append)

    assert reports[-1].step == reports[-1].steps == 8 * -(-trainer.examples // trainer.batch_size)
    assert reports[-1].loss < 0.8 * reports[0].loss
    epochs = [report for report in reports if report.accuracy]
    assert [report.step for report in epochs] == [report.steps // 8 * epoch for epoch, report in enumerate(epochs, 1)]
    last = epochs[-1].accuracy
    assert last is not None
    text = torch.tensor([token for each in dataset.held_out for token in each.text.answer])
    commonest = float((text == heads.draft_vocab[0]).float().mean())
    for head in range(2):
        assert last.shares[head][0] > 0.5 > 10 * max(commonest, before[head][0])
    heads.save_pretrained(tmp_path / "heads")
    trainer.heads = load_heads(tmp_path / "heads", backbone)
    assert trainer.heads is not heads
    assert trainer.accuracy() == last


def test_an_epoch_goes_through_every_position_or_text(backbone: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    stateless = trainer_of(backbone, dataset, settings(kind=STATELESS_KINDS[0]), tmp_path)
    assert stateless.examples == len(Positions.of(dataset.train).usable)
    assert stateless.batch_size == 64
    eagle3 = trainer_of(backbone, dataset, settings(kind=EAGLE3), tmp_path)
    assert eagle3.examples == len(dataset.train)
    assert eagle3.batch_size == 2, "texts of 32 tokens, for about 64 positions a step"
    assert trainer_of(backbone, dataset, settings(kind=EAGLE3, batch_size=1), tmp_path).batch_size == 1
    for trainer in (stateless, eagle3):
        assert trainer.shuffled(0).sort().values.tolist() == list(range(trainer.examples))
        assert trainer.shuffled(0).tolist() != trainer.shuffled(1).tolist()


@pytest.fixture(scope="module")
def whole(kind: str, backbone: Backbone, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> DraftHeads:
    """Heads of a training that nothing interrupted."""
    trainer = trainer_of(backbone, dataset, settings(kind=kind), tmp_path_factory.mktemp("whole"))
    heads: DraftHeads = trainer.train()
    return heads


@pytest.mark.parametrize("kind", sorted(KINDS), scope="module")
@pytest.mark.parametrize("step", [1, 20, 60], ids=["before a checkpoint", "within an epoch", "in a later epoch"])
def test_an_interrupted_training_ends_with_the_same_bits(
    kind: str, step: int, whole: DraftHeads, backbone: Backbone, dataset: Dataset, tmp_path: Path
) -> None:
    chosen = settings(kind=kind)
    if step > 1:
        with pytest.raises(KeyboardInterrupt):
            trainer_of(backbone, dataset, chosen, tmp_path / "cut").train(interrupt_at(step))
    torch.randn(3)  # the global random state is not part of it
    resumed = trainer_of(backbone, dataset, chosen, tmp_path / "cut")
    assert same_weights(resumed.train(), whole)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["checkpoint.pt"]


@pytest.mark.filterwarnings("error")
@every_kind
def test_the_same_settings_give_the_same_bits_and_others_do_not(
    kind: str, backbone: Backbone, dataset: Dataset, tmp_path: Path
) -> None:
    runs = [
        trainer_of(backbone, dataset, settings(kind=kind, epochs=1, seed=seed), tmp_path / str(number)).train()
        for number, seed in enumerate((0, 0, 1))
    ]
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


@every_kind
def test_a_finished_training_reports_its_end_again(
    kind: str, backbone: Backbone, dataset: Dataset, tmp_path: Path
) -> None:
    first: list[Progress] = []
    again: list[Progress] = []
    chosen = settings(kind=kind)
    whole = trainer_of(backbone, dataset, chosen, tmp_path).train(first.append)
    assert same_weights(trainer_of(backbone, dataset, chosen, tmp_path).train(again.append), whole)
    assert again == first[-1:]


@every_kind
def test_a_checkpoint_of_another_training_is_refused(
    kind: str, backbone: Backbone, dataset: Dataset, corpus: Path, tmp_path: Path
) -> None:
    chosen = settings(kind=kind, epochs=1)
    trainer_of(backbone, dataset, chosen, tmp_path).train()
    shutil.copytree(corpus, tmp_path / "text" / "corpus")
    part_paths(tmp_path / "text" / "corpus")[-1].unlink()
    layers = find_trainer(kind).feature_layers(backbone)
    less = Dataset(tmp_path / "text" / "corpus", write_states(backbone, tmp_path / "text" / "corpus", layers), 0.2)
    others = {
        "settings": trainer_of(backbone, dataset, settings(kind=kind, epochs=2), tmp_path),
        "corpus": trainer_of(backbone, less, chosen, tmp_path),
        "model": trainer_of(deep_backbone(seed=1), dataset, chosen, tmp_path),
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
        trainer_of(backbone, dataset, settings(), tmp_path).train()


@every_kind
def test_a_corpus_of_another_hidden_size_is_refused(kind: str, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match="states have 32 units but the model's have 48"):
        trainer_of(deep_backbone(hidden_size=48), dataset, settings(kind=kind), tmp_path)


@every_kind
def test_a_half_precision_model_trains_in_float32(kind: str, dataset: Dataset, tmp_path: Path) -> None:
    backbone = deep_backbone(dtype=torch.bfloat16)
    reports: list[Progress] = []
    heads = trainer_of(backbone, dataset, settings(kind=kind, epochs=1), tmp_path).train(reports.append)
    assert {parameter.dtype for parameter in heads.parameters()} == {torch.float32}
    assert reports[-1].accuracy is not None


@pytest.mark.parametrize("kind", STATELESS_KINDS)
@pytest.mark.parametrize("model_type", ["llama", "phi"])
@pytest.mark.parametrize("distillation", [0.0, 1.0])
def test_with_every_candidate_the_loss_is_the_full_one(
    kind: str, model_type: str, distillation: float, dataset: Dataset, tmp_path: Path
) -> None:
    backbone = build_backbone(tiny_model(model_type))
    chosen = settings(kind=kind, distillation=distillation, frequent_candidates=64)
    trainer = trainer_of(backbone, dataset, chosen, tmp_path)
    positions = Positions.of(dataset.train)
    batch = positions.batch(positions.usable[:50], 2)
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
    torch.testing.assert_close(trainer.loss_of(torch.arange(50)).detach(), expected, atol=1e-4, rtol=1e-4)


@every_kind
def test_batches_without_a_label_do_no_harm(
    kind: str, backbone: Backbone, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = copy(dataset)
    few.train = dataset.train[:2]
    text = {token for each in few.train for token in each.text.answer}
    unseen = torch.tensor([token for token in range(VOCAB) if token not in text][:16], dtype=torch.int32)
    assert len(unseen) == 16
    monkeypatch.setattr(few, "frequent_tokens", lambda count, vocab_size: unseen)
    chosen = settings(kind=kind, epochs=1, batch_size=2, draft_vocab_size=16)
    heads = trainer_of(backbone, few, chosen, tmp_path).train()
    assert all(parameter.isfinite().all() for parameter in heads.parameters())
