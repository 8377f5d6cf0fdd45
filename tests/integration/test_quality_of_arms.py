"""Every lossless arm is exactly as good as plain decoding, on the bundled model, and Medusa's own rule is not.

Some of the prompts are ones that the model solves, so that scores are not all 0; likelihoods differ from text to text.
"""

import pyarrow as pa
import pytest
import torch

from entmtp import methods
from entmtp.evaluation.analysis.conclusions import conclusions
from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.analysis.summary import Summary
from entmtp.evaluation.run.arms import default_arms, lossless_arms, with_heads
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.worker import Worker, WorkerConfig
from entmtp.heads.checkpoint import BUNDLED_KINDS, bundled_heads
from entmtp.settings import PAPER_TEMPERATURE, BenchmarkSettings
from entmtp.suites import MIXED, Prompt, load_suite
from entmtp.trees.bank import bundled_bank

pytestmark = pytest.mark.slow

LOSSLESS = tuple(with_heads(lossless_arms(), BUNDLED_KINDS))
ARMS = (*LOSSLESS, *methods.lossy())
GREEDY = BenchmarkSettings(max_new_tokens=96, repetitions=1)
DRAWN = BenchmarkSettings(max_new_tokens=48, repetitions=1, temperature=PAPER_TEMPERATURE)
SUMS = {
    "What is 2 + 3?": "5",
    "Tom has 3 apples and buys 4 more. How many apples does he have?": "7",
    "What is 10 - 4?": "6",  # it says 4
}
FUNCTIONS = ("HumanEval/23", "HumanEval/53", "HumanEval/35")  # strlen, add, and max_element, where it fails
SOLVED = pytest.approx(2 / 3)


def prompts() -> dict[str, list[Prompt]]:
    """By suite, two prompts that the model solves and one that it does not."""
    known = {prompt.id: prompt for prompt in load_suite("humaneval").prompts}
    sums = [
        Prompt(f"gsm8k/{number}", "gsm8k", question, {"answer": f"#### {answer}"})
        for number, (question, answer) in enumerate(SUMS.items())
    ]
    return {"humaneval": [known[name] for name in FUNCTIONS], "gsm8k": sums}


SUITES = ("humaneval", "gsm8k")


@pytest.fixture(scope="module")
def worker(step_costs: None) -> Worker:
    heads = {kind: str(bundled_heads(kind)) for kind in BUNDLED_KINDS}
    tasks = ("humaneval", "gsm8k", "litbench", "sharegpt", MIXED)
    banks = {task: {kind: str(bundled_bank(task, kind)) for kind in BUNDLED_KINDS} for task in tasks}
    return Worker(WorkerConfig("bundled", heads, banks, "cpu", torch.get_num_threads()))


def run(worker: Worker, settings: BenchmarkSettings) -> Summary:
    units = [Unit(suite, 0, suite, "package", tuple(asked)) for suite, asked in prompts().items()]
    outcomes = [worker.run(unit, ARMS, settings) for unit in units]
    assert not any(outcome.failures for outcome in outcomes)
    requests = pa.concat_tables([outcome.requests for outcome in outcomes])
    return summarise(requests, pa.concat_tables([outcome.steps for outcome in outcomes]))


@pytest.fixture(scope="module")
def greedy(worker: Worker) -> Summary:
    return run(worker, GREEDY)


@pytest.fixture(scope="module")
def drawn(worker: Worker) -> Summary:
    return run(worker, DRAWN)


@pytest.mark.parametrize("suite", SUITES)
def test_every_lossless_arm_scores_what_plain_decoding_scores(suite: str, greedy: Summary) -> None:
    rows = {row.arm: row for row in greedy.arms if row.suite == suite}
    assert (
        set(rows)
        == set(ARMS)
        == {*with_heads(default_arms(), BUNDLED_KINDS), *methods.foreign_banks(), *methods.lossy()}
    )
    assert rows["autoregressive"].score == SOLVED, "or scores would be compared that are all the same"
    for arm in LOSSLESS:
        assert rows[arm].identical + rows[arm].ties == rows[arm].requests == 3, arm
        assert rows[arm].score == SOLVED, arm
        assert rows[arm].scored == 3, arm
        assert rows[arm].log_likelihood.value == pytest.approx(rows["autoregressive"].log_likelihood.value, abs=1e-3)


@pytest.mark.parametrize("suite", SUITES)
def test_drawn_texts_of_lossless_arms_are_as_likely_as_plain_decodings(suite: str, drawn: Summary) -> None:
    rows = {row.arm: row for row in drawn.arms if row.suite == suite}
    for arm in set(LOSSLESS) - {"autoregressive"}:
        assert rows[arm].identical == 3, arm
        found = drawn.likelihood(suite, arm)
        assert found is not None
        assert (found.difference.low, found.difference.high) == (0, 0), arm
    typical = drawn.likelihood(suite, *methods.lossy())
    assert typical is not None
    assert rows["medusa-typical"].identical < 3
    assert typical.difference.value != 0, "it is another text, or this test compares nothing"


def test_greedy_texts_are_likelier_than_drawn_ones(greedy: Summary, drawn: Summary) -> None:
    for suite in SUITES:
        most, some = (
            next(row for row in summary.arms if (row.suite, row.arm) == (suite, "autoregressive"))
            for summary in (greedy, drawn)
        )
        assert 0 > most.log_likelihood.value > some.log_likelihood.value


def test_scores_and_likelihoods_are_told(greedy: Summary, drawn: Summary) -> None:
    told = [sentence for sentence in conclusions(greedy) if "over 3 prompts" in sentence]
    assert [sentence.split(" over")[0] for sentence in told] == ["humaneval pass@1", "gsm8k exact match"]
    (likelihoods,) = [sentence for sentence in conclusions(drawn) if sentence.startswith("log-likelihood")]
    for sentence in (*told, likelihoods):
        print(sentence)
