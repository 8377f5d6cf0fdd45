import shutil
from pathlib import Path

import pytest
import torch

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import CorpusSettings
from entmtp.training.corpus import part_paths, read_corpus, write_corpus
from entmtp.training.dataset import Dataset, Positions
from entmtp.training.states import write_states
from tests.helpers.tiny_models import VOCAB, greedy, tiny_model

AHEAD = 4
SHORT = CorpusSettings(slots=1, max_new_tokens=4, sampled_share=0)


def test_a_batch_holds_what_follows_and_marks_the_answers_end(dataset: Dataset) -> None:
    positions = Positions.of(dataset.texts)
    batch = positions.batch(positions.usable, AHEAD)
    rows = iter(range(len(batch.tokens)))
    for each in dataset.texts:
        answer = torch.tensor(each.text.answer)
        states = each.states.hidden[len(each.text.prompt) - 1 :]
        for start in range(len(answer) - 1):
            row = next(rows)
            assert batch.valid[row, 0], "a position with nothing after it teaches nothing"
            for ahead in range(AHEAD + 1):
                inside = start + ahead < len(answer)
                assert ahead == 0 or batch.valid[row, ahead - 1] == inside
                if inside:
                    assert batch.tokens[row, ahead] == answer[start + ahead]
                    assert torch.equal(batch.states[row, ahead], states[start + ahead])
    assert next(rows, None) is None


def test_a_text_is_on_one_side_only_and_every_position_is_used(dataset: Dataset, corpus: Path) -> None:
    train, held_out = ({each.text.prompt_id for each in side} for side in (dataset.train, dataset.held_out))
    assert train.isdisjoint(held_out)
    assert len(train | held_out) == len(dataset.texts) == 80
    assert len(Positions.of(dataset.texts).usable) == dataset.answer_tokens - len(dataset.texts)
    assert 4 <= len(held_out) <= 36
    texts = {text.prompt_id: text for text in read_corpus(corpus)}
    assert {each.text.prompt_id: each.text for each in dataset.texts} == texts
    assert dataset.answer_tokens == sum(len(text.answer) for text in texts.values())


def test_states_are_those_of_their_text(backbone: Backbone, dataset: Dataset) -> None:
    for each in dataset.texts[::9]:
        assert len(each.states.hidden) == len(each.states.features) == len(each.text.tokens)
        cache = backbone.new_cache(slots=1, capacity=len(each.text.tokens))
        own = backbone.prefill(each.text.tokens, 0, cache).hidden
        torch.testing.assert_close(each.states.hidden.float(), own, atol=1e-3, rtol=1e-2)


def test_frequent_tokens_come_first(dataset: Dataset) -> None:
    tokens = dataset.frequent_tokens(VOCAB, VOCAB)
    text = torch.tensor([token for each in dataset.train for token in each.text.answer])
    counts = torch.bincount(text, minlength=VOCAB)[tokens.long()]
    assert sorted(tokens.tolist()) == list(range(VOCAB))
    assert torch.equal(counts, counts.sort(descending=True).values)
    assert torch.equal(dataset.frequent_tokens(5, VOCAB), tokens[:5])


def test_another_corpus_has_another_fingerprint(
    backbone: Backbone, corpus: Path, dataset: Dataset, tmp_path: Path
) -> None:
    states = write_states(backbone, corpus, ())
    assert Dataset(corpus, states, 0.2).fingerprint == dataset.fingerprint
    shutil.copytree(corpus, tmp_path / "less")
    part_paths(tmp_path / "less")[-1].unlink()
    assert Dataset(tmp_path / "less", states, 0.2).fingerprint != dataset.fingerprint


def test_answers_of_one_token_are_left_out(prompts: list[list[int]], tmp_path: Path) -> None:
    model = tiny_model("llama")
    firsts = [greedy(model, ids, 1)[0] for ids in prompts[:30]]
    model.generation_config.eos_token_id = firsts[0]
    backbone = build_backbone(model)
    write_corpus(backbone, prompts[:30], tmp_path / "corpus", SHORT)
    made = Dataset(tmp_path / "corpus", write_states(backbone, tmp_path / "corpus", ()), 0.3)
    assert len(made.texts) == sum(first != firsts[0] for first in firsts) < 30
    assert min(len(each.text.answer) for each in made.texts) > 1


def test_unusable_corpora_are_named(backbone: Backbone, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match=rf"no part-\*\.safetensors in {tmp_path}"):
        Dataset(tmp_path, tmp_path, 0.2)
    write_corpus(backbone, [[5, 6]], tmp_path / "corpus", SHORT)
    states = write_states(backbone, tmp_path / "corpus", ())
    with pytest.raises(EntMTPError, match=r"1 answers are too few to hold out a share of 0\.2"):
        Dataset(tmp_path / "corpus", states, 0.2)
    with pytest.raises(EntMTPError, match=rf"{states}/part-00000\.safetensors is not of {corpus}/part-00000"):
        Dataset(corpus, states, 0.2)
    with pytest.raises(EntMTPError, match=r"states: .*part-00000\.safetensors can't be read"):
        Dataset(tmp_path / "corpus", tmp_path, 0.2)
