from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.evaluation.run.units import Unit, make_units
from entmtp.settings import BenchmarkSettings
from entmtp.suites import get_suite, load_suite, split
from entmtp.suites.splits import draw
from tests.helpers.saved_project import SUITES, save_data

SETTINGS = BenchmarkSettings(prompts=3, max_new_tokens=16, repetitions=2, shard_prompts=2)
IDENTITY = {"model": "m", "heads-hydra": "1", "bank-gsm8k-hydra": "2"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    save_data(tmp_path)
    return {suite: str(tmp_path / f"{suite}.jsonl") for suite in SUITES}


def units(files: dict[str, str], **changes: Any) -> list[Unit]:
    arguments: dict[str, Any] = {
        "suites": ["gsm8k", "sharegpt"],
        "arms": ["autoregressive", "entmtp"],
        "settings": SETTINGS,
        "identity": IDENTITY,
    }
    return make_units(data_files=files, **(arguments | changes))


def keys(made: Sequence[Unit]) -> set[str]:
    return {unit.key for unit in made}


def test_units_hold_each_scored_prompt_once_and_suites_take_turns(files: dict[str, str]) -> None:
    made = units(files, settings=SETTINGS.model_copy(update={"prompts": 99}))
    for suite in SUITES:
        of_suite = [unit for unit in made if unit.suite == suite]
        prompts = [prompt for unit in of_suite for prompt in unit.prompts]
        assert prompts == list(split(load_suite(suite, files[suite]).prompts)[1])
        assert [unit.first for unit in of_suite] == list(range(0, len(prompts), 2))
        assert {unit.source for unit in of_suite} == {"file"}
    assert [unit.suite for unit in made][:4] == ["gsm8k", "sharegpt", "gsm8k", "sharegpt"]
    assert len(keys(made)) == len(made)


def test_a_unit_is_named_alike_in_every_run(files: dict[str, str]) -> None:
    assert units(files) == units(files)


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": ["autoregressive"]},
        {"identity": IDENTITY | {"heads-hydra": "other"}},
        {"identity": IDENTITY | {"bank-gsm8k-hydra": "other"}},
        {"settings": SETTINGS.model_copy(update={"max_new_tokens": 17})},
        {"settings": SETTINGS.model_copy(update={"repetitions": 3})},
        {"settings": SETTINGS.model_copy(update={"seed": 1})},
    ],
)
def test_whatever_a_result_depends_on_changes_its_name(changes: dict[str, Any], files: dict[str, str]) -> None:
    assert not keys(units(files)) & keys(units(files, **changes))


def test_other_prompts_change_its_name(files: dict[str, str]) -> None:
    before = units(files)
    path = Path(files["gsm8k"])
    path.write_text(path.read_text().replace("What", "Then what"))
    after = units(files)
    assert keys(before) & keys(after) == keys([unit for unit in before if unit.suite == "sharegpt"])


def test_a_file_without_a_scored_prompt_is_used_all_the_same(files: dict[str, str]) -> None:
    calibration, _ = split(load_suite("sharegpt", files["sharegpt"]).prompts)
    lines = Path(files["sharegpt"]).read_text().splitlines(keepends=True)
    keep = {int(prompt.id.rpartition("/")[2]) for prompt in calibration}
    Path(files["sharegpt"]).write_text("".join(line for number, line in enumerate(lines) if number in keep))
    chosen = {prompt.text for unit in units(files, suites=["sharegpt"]) for prompt in unit.prompts}
    assert len(chosen) == min(SETTINGS.prompts, len(calibration))
    assert chosen <= {prompt.text for prompt in calibration}


@pytest.fixture(scope="module")
def data_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    save_data(folder)
    return {suite: str(folder / f"{suite}.jsonl") for suite in SUITES}


@given(
    suites=st.lists(st.sampled_from(SUITES), min_size=1, unique=True),
    prompts=st.integers(1, 12),
    shard_prompts=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_each_drawn_prompt_is_in_one_unit_whose_key_is_its_own_and_stable(
    data_files: dict[str, str], suites: list[str], prompts: int, shard_prompts: int, seed: int
) -> None:
    chosen = SETTINGS.model_copy(update={"prompts": prompts, "shard_prompts": shard_prompts, "seed": seed})
    made = units(data_files, suites=suites, settings=chosen)
    assert made == units(data_files, suites=suites, settings=chosen)
    assert len(keys(made)) == len(made)
    for suite in suites:
        scored = split(load_suite(suite, data_files[suite]).prompts)[1]
        own = [unit for unit in made if unit.suite == suite]
        drawn = [prompt for unit in own for prompt in unit.prompts]
        assert drawn == list(draw(scored, prompts, seed))
        assert [unit.first for unit in own] == list(range(0, len(drawn), shard_prompts))
    assert keys(made) == {key for suite in suites for key in keys(units(data_files, suites=[suite], settings=chosen))}


def test_a_suite_that_calibrated_nothing_is_scored_whole(files: dict[str, str]) -> None:
    made = units(files, suites=["gsm8k"], settings=SETTINGS.model_copy(update={"prompts": 99}), uncalibrated=["gsm8k"])
    assert [prompt for unit in made for prompt in unit.prompts] == list(load_suite("gsm8k", files["gsm8k"]).prompts)


def test_drawn_texts_and_variants_have_other_names_and_the_same_prompts(files: dict[str, str]) -> None:
    def numbers(made: Sequence[Unit]) -> list[str]:
        return [prompt.id.rpartition("/")[2] for unit in made for prompt in unit.prompts]

    plain = units(files, suites=["gsm8k"])
    shots = units(files, suites=["gsm8k-2-shot"])
    drawn = [
        units(files, suites=["gsm8k"], settings=SETTINGS.model_copy(update=changes))
        for changes in ({"temperature": 0.7}, {"temperature": 0.7, "acceptance": "typical"})
    ]
    assert numbers(plain) == numbers(shots) == numbers(drawn[0])
    assert len({key for made in (plain, shots, *drawn) for key in keys(made)}) == 4 * len(plain)


def test_a_budget_above_the_suites_own_changes_nothing(files: dict[str, str]) -> None:
    budget = get_suite("gsm8k").protocol.max_new_tokens
    at, above = (SETTINGS.model_copy(update={"max_new_tokens": most}) for most in (budget, budget + 1))
    assert units(files, suites=["gsm8k"], settings=at) == units(files, suites=["gsm8k"], settings=above)
