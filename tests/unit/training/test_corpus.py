from pathlib import Path

import pytest

from entmtp.errors import EntMTPError
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.settings import CorpusSettings
from entmtp.training.corpus import part_paths, prompt_id, read_corpus, read_part, write_corpus
from tests.helpers.tiny_models import CONTEXT, greedy, random_tokens, tiny_model

NEW = 10
GREEDY = CorpusSettings(slots=3, max_new_tokens=NEW, sampled_share=0, part_tokens=25)
SAMPLED = GREEDY.model_copy(update={"sampled_share": 1.0})


def answers(folder: Path) -> dict[str, list[int]]:
    """The tokens of every answer by prompt id; fails if a prompt was answered twice."""
    found = [(text.prompt_id, list(text.answer)) for text in read_corpus(folder)]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_greedy_answers_are_the_models_own(backbone: Backbone, prompts: list[list[int]], tmp_path: Path) -> None:
    written = write_corpus(backbone, prompts[:7], tmp_path, GREEDY)
    expected = {prompt_id(ids): greedy(backbone.model, ids, NEW) for ids in prompts[:7]}
    assert answers(tmp_path) == expected
    assert written == 7 * NEW
    assert len(part_paths(tmp_path)) > 1
    assert all(path in part_paths(tmp_path) for path in tmp_path.iterdir())
    assert {text.prompt_id: text.prompt for text in read_corpus(tmp_path)} == {
        prompt_id(ids): ids for ids in prompts[:7]
    }


def test_an_end_token_ends_an_answer_and_is_stored(prompts: list[list[int]], tmp_path: Path) -> None:
    model = tiny_model("llama")
    long = {prompt_id(ids): greedy(model, ids, NEW) for ids in prompts[:6]}
    end = next(iter(long.values()))[4]
    model.generation_config.eos_token_id = end
    write_corpus(build_backbone(model), prompts[:6], tmp_path, GREEDY)
    cut = {name: tokens[: tokens.index(end) + 1] if end in tokens else tokens for name, tokens in long.items()}
    assert answers(tmp_path) == cut
    assert min(map(len, cut.values())) < NEW


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_interrupted_run_continues_without_repeating(
    settings: CorpusSettings, backbone: Backbone, prompts: list[list[int]], tmp_path: Path
) -> None:
    def interrupt(count: int, tokens: int) -> None:
        if count == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(backbone, prompts[:12], tmp_path, settings, interrupt)
    contents = {path: path.read_bytes() for path in part_paths(tmp_path)}
    already = answers(tmp_path)
    assert 0 < len(already) < 12
    counts: list[int] = []

    written = write_corpus(backbone, prompts[:12], tmp_path, settings, lambda count, tokens: counts.append(count))

    write_corpus(backbone, prompts[:12], tmp_path / "whole", settings)
    assert answers(tmp_path) == answers(tmp_path / "whole")
    assert {path: path.read_bytes() for path in contents} == contents
    assert written == (12 - len(already)) * NEW
    assert counts == list(range(len(already) + 1, 13))
    assert write_corpus(backbone, prompts[:12], tmp_path, settings) == 0


def test_a_removed_part_is_written_again_and_the_others_stay(
    backbone: Backbone, prompts: list[list[int]], tmp_path: Path
) -> None:
    write_corpus(backbone, prompts[:9], tmp_path, GREEDY)
    before = answers(tmp_path)
    part_paths(tmp_path)[0].unlink()
    write_corpus(backbone, prompts[:9], tmp_path, GREEDY)
    assert answers(tmp_path) == before


def test_sampling_depends_on_the_seed_alone(backbone: Backbone, prompts: list[list[int]], tmp_path: Path) -> None:
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_corpus(backbone, prompts[:5], tmp_path / name, SAMPLED.model_copy(update={"seed": seed}))
        texts.append(answers(tmp_path / name))
    assert texts[0] == texts[1] != texts[2]


def test_the_share_of_sampled_prompts_is_as_configured(
    backbone: Backbone, prompts: list[list[int]], tmp_path: Path
) -> None:
    hot = {"temperature": 50.0, "sampled_share": 0.5}
    write_corpus(backbone, prompts[:40], tmp_path, GREEDY.model_copy(update=hot))
    own = {prompt_id(ids): greedy(backbone.model, ids, NEW) for ids in prompts[:40]}
    differing = sum(tokens != own[name] for name, tokens in answers(tmp_path).items())
    assert 10 <= differing <= 30


def test_unsuitable_and_repeated_prompts_are_left_out(backbone: Backbone, tmp_path: Path) -> None:
    fitting, empty, long = random_tokens(5), random_tokens(0), random_tokens(6)
    settings = GREEDY.model_copy(update={"max_prompt_tokens": 5})
    assert write_corpus(backbone, [fitting, empty, long, fitting], tmp_path, settings) == NEW
    assert list(answers(tmp_path)) == [prompt_id(fitting)]
    with pytest.raises(EntMTPError, match="none of 2 has between 1 and 5 tokens"):
        write_corpus(backbone, [empty, long], tmp_path, settings)


@pytest.mark.parametrize("room", [NEW, NEW - 1])
def test_prompt_and_answer_must_fit_the_models_context(room: int, backbone: Backbone, tmp_path: Path) -> None:
    ids = random_tokens(CONTEXT - room)
    if room == NEW:
        assert write_corpus(backbone, [ids], tmp_path, GREEDY) == NEW
        return
    with pytest.raises(EntMTPError, match=f"none of 1 has between 1 and {CONTEXT - NEW} tokens"):
        write_corpus(backbone, [ids], tmp_path, GREEDY)


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.safetensors"
    path.write_bytes(b"not a part")
    with pytest.raises(EntMTPError, match=r"part-00000\.safetensors is not a corpus part"):
        read_part(path)
