"""The plan that a benchmark's options make, and the arms of each profile."""

from pathlib import Path

import pytest

from entmtp import methods
from entmtp.errors import EntMTPError
from entmtp.evaluation.run.arms import lossless_arms, needs_foresight, quick_arms, with_heads
from entmtp.evaluation.run.planning import _usual_arms, validate
from entmtp.settings import PROFILES, STUDIES
from tests.helpers.benchmark_plans import plan_of
from tests.helpers.saved_project import SUITES, VOCAB, Saved, save_project, save_tiny_model
from tests.helpers.stateless_arms import DEFAULT, LOSSLESS
from tests.helpers.tiny_models import random_heads


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_project(tmp_path_factory.mktemp("project"))


def test_a_plan_says_everything_that_a_worker_needs(saved: Saved, tmp_path: Path) -> None:
    plan = plan_of(saved, tmp_path)
    assert plan.arms == with_heads(quick_arms(), ("hydra", "medusa"))
    assert (plan.settings.prompts, plan.settings.repetitions) == (2, 3)
    assert {unit.suite for unit in plan.units} == set(SUITES)
    assert sum(len(unit.prompts) for unit in plan.units) == 4
    assert set(plan.config.banks) == set(SUITES)
    assert all(Path(path).is_file() for banks in plan.config.banks.values() for path in banks.values())
    assert plan.waiting == plan.units


def test_a_suite_named_twice_runs_once(saved: Saved, tmp_path: Path) -> None:
    assert plan_of(saved, tmp_path, suites=["gsm8k", "gsm8k"]).units == plan_of(saved, tmp_path, suites=["gsm8k"]).units


def test_other_heads_make_other_units(saved: Saved, tmp_path: Path) -> None:
    before = {unit.key for unit in plan_of(saved, tmp_path).units}
    backbone = save_tiny_model(tmp_path / "model")
    random_heads("hydra", backbone, vocab_size=VOCAB, draft_vocab_size=64).save_pretrained(tmp_path / "hydra")
    heads = [f"medusa={saved.heads('medusa')}", f"hydra={tmp_path / 'hydra'}"]
    assert not before & {unit.key for unit in plan_of(saved, tmp_path, heads=heads).units}


def test_another_type_makes_other_units(saved: Saved, tmp_path: Path) -> None:
    whole, half = plan_of(saved, tmp_path), plan_of(saved, tmp_path, dtype="bfloat16")
    assert half.config.dtype == "bfloat16"
    assert not {unit.key for unit in whole.units} & {unit.key for unit in half.units}
    with pytest.raises(EntMTPError, match=r"^dtype 'int8': "):
        plan_of(saved, tmp_path, dtype="int8")


def test_controls_and_variants_are_for_longer_profiles(saved: Saved, tmp_path: Path) -> None:
    def arms(profile: str) -> list[str]:
        return plan_of(saved, tmp_path, profile=profile).arms

    assert {"autoregressive", "medusa", "hydra", "hydra-best", "entmtp", "entmtp-dynamic"} == set(arms("quick"))
    assert arms("standard") == arms("full") == list(DEFAULT)
    assert set(arms("quick")) < set(DEFAULT) < set(LOSSLESS)


def test_profiles_that_draw_have_arms_that_can(saved: Saved, tmp_path: Path) -> None:
    paper = plan_of(saved, tmp_path, profile="paper")
    assert (paper.settings.acceptance, paper.settings.temperature) == ("typical", 0.7)
    assert paper.arms == [arm for arm in DEFAULT if not needs_foresight(arm)]
    assert plan_of(saved, tmp_path, profile="paper-lossless").arms == [*DEFAULT, *methods.lossy()]


def test_studies_run_every_arm_that_can_at_each_temperature() -> None:
    greedy, lossless, typical = (PROFILES[name] for name in STUDIES)
    assert [settings.temperature for settings in (greedy, lossless, typical)] == [0.0, 0.7, 0.7]
    assert [settings.acceptance for settings in (greedy, lossless, typical)] == ["rejection", "rejection", "typical"]
    arms = [_usual_arms(name, PROFILES[name]) for name in STUDIES]
    assert list(arms[0]) == list(lossless_arms())
    assert list(arms[1]) == [*lossless_arms(), *methods.lossy()]
    assert list(arms[2]) == [arm for arm in lossless_arms() if not needs_foresight(arm)]


def test_errors_are_reported_before_anything_runs(saved: Saved, tmp_path: Path) -> None:
    validate(profile="full", suites=["gsm8k"], arms=["entmtp"], overrides={"prompts": None})
    with pytest.raises(EntMTPError, match=r"no such folder|not found"):
        plan_of(saved, tmp_path, model=str(tmp_path / "nowhere"))
    with pytest.raises(EntMTPError, match="does not exist; make one with 'entmtp calibrate'"):
        plan_of(saved, tmp_path, banks=tmp_path)
    assert not (tmp_path / "parts").exists()
