"""Counts of scored prompts that the heads were trained on, from the suite's file to the report."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from entmtp.evaluation.analysis.overlap_description import (
    UNKNOWN,
    Overlap,
    describe_overlap,
    overlap_caveats,
    overlap_metrics,
)
from entmtp.evaluation.run.training_overlap import training_overlap
from entmtp.evaluation.run.units import Unit, make_units
from entmtp.heads.training_prompts import write_training_prompt_hashes
from entmtp.prompt_hash import prompt_hash
from entmtp.settings import BenchmarkSettings
from entmtp.suites import Prompt

Trained = Callable[..., str]


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """Heads that were trained on some texts."""

    def make(*texts: str) -> str:
        write_training_prompt_hashes(tmp_path / "heads", map(prompt_hash, texts))
        return str(tmp_path / "heads")

    return make


def unit(*prompts: Prompt) -> Unit:
    return Unit("key", 0, prompts[0].suite, "file", prompts)


def seen(heads: str, *prompts: Prompt) -> int:
    overlap = training_overlap([unit(*prompts)], {"hydra": heads})["hydra"]
    assert not isinstance(overlap, str)
    assert overlap[prompts[0].suite]["scored"] == len(prompts)
    return overlap[prompts[0].suite]["seen"]


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("1", "gsm8k", "What is  2 + 2?", {}),
        Prompt("1", "gsm8k-2-shot", "Question: … Question: What is 2 + 2?\nAnswer:", {}, key="What is 2 + 2?"),
        Prompt("1", "humaneval", "Complete this Python function: …", {"prompt": "what is 2 + 2?"}),
        Prompt("1", "mt-bench", "What is 2 + 2?", {}, (("user", "Hello"),), key="Hello"),
        Prompt("1", "mt-bench", "Why?", {}, (("user", "Hm."), ("assistant", "Yes?"), ("user", "What is 2 + 2?"))),
        Prompt("1", "sharegpt-3-turns", "Why?", {}, (), key="What is 2 + 2?"),
    ],
    ids=["text", "after worked examples", "in a template", "follow-up", "earlier turn", "opening"],
)
def test_a_question_is_found_wherever_it_stands(trained: Trained, prompt: Prompt) -> None:
    other = Prompt("2", prompt.suite, "Another one", {"prompt": "Another"}, (("assistant", "What is 2 + 2?"),))
    assert seen(trained("what is 2 + 2?", "Something else"), prompt, other) == 1
    assert seen(trained("What is 2 + 3?"), prompt, other) == 0


def test_every_suite_is_counted_as_it_is_loaded(tmp_path: Path, trained: Trained) -> None:
    questions = [f"What is {n} + {n}?" for n in range(40)]
    stories = [f"Tell me of {n} wolves." for n in range(6)]
    gsm8k, custom = tmp_path / "gsm8k.jsonl", tmp_path / "custom.jsonl"
    gsm8k.write_text("".join(json.dumps({"question": one, "answer": "#### 1"}) + "\n" for one in questions))
    custom.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in stories))
    units = make_units(
        ["gsm8k", "custom"],
        {"gsm8k": str(gsm8k), "custom": str(custom)},
        ["hydra"],
        BenchmarkSettings(prompts=10),
        {},
        uncalibrated=["custom"],
    )
    scored = [prompt.text for one in units for prompt in one.prompts if one.suite == "gsm8k"]
    others = [question for question in questions if question not in scored]
    heads = trained(*scored[:3], *others, *stories)
    found = training_overlap(units, {"hydra": heads, "native": "native"})
    assert found == {
        "hydra": {"gsm8k": {"seen": 3, "scored": 10}, "custom": {"seen": 6, "scored": 6}},
        "native": UNKNOWN,
    }


def test_what_is_said_and_tracked_of_it() -> None:
    overlap: dict[str, Overlap | str] = {
        "hydra": {"gsm8k": {"seen": 0, "scored": 9}, "sharegpt": {"seen": 2, "scored": 8}},
        "medusa": UNKNOWN,
    }
    assert list(describe_overlap(overlap)) == [
        "scored prompts that the hydra heads were trained on: gsm8k 0 of 9, sharegpt 2 of 8",
        f"scored prompts that the medusa heads were trained on: {UNKNOWN}",
    ]
    provenance = {"training_overlap": overlap}
    assert overlap_metrics(provenance) == {"training_overlap/hydra/gsm8k": 0.0, "training_overlap/hydra/sharegpt": 2.0}
    warned = overlap_caveats(provenance)
    assert len(warned) == 2
    assert "hydra heads were trained on some of the scored prompts (2 of 8 of sharegpt)" in warned[0]
    assert f"medusa heads were trained on: {UNKNOWN}." in warned[1]
    assert overlap_caveats({"training_overlap": {"hydra": {"gsm8k": {"seen": 0, "scored": 9}}}}) == []
    assert (overlap_caveats({}), overlap_metrics({})) == ([], {})
