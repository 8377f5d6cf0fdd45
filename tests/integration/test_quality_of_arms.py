"""Every lossless arm is exactly as good as plain decoding, on the bundled model; Medusa's own rule is told beside."""

import pyarrow as pa
import pytest
import torch

from entmtp.evaluation.arms import DEFAULT_ARMS, FOREIGN_BANKS, LOSSLESS
from entmtp.evaluation.metrics import summarise
from entmtp.evaluation.runner import Worker, Workplace
from entmtp.evaluation.summary import LOSSY, Summary
from entmtp.evaluation.units import make_units
from entmtp.evaluation.verdicts import verdicts
from entmtp.heads.checkpoint import KINDS, bundled_heads
from entmtp.settings import BenchmarkSettings
from entmtp.trees.bank import MIXED, bundled_bank

pytestmark = pytest.mark.slow

SUITES = ("humaneval", "gsm8k")
ARMS = (*LOSSLESS, *LOSSY)
SETTINGS = BenchmarkSettings(prompts=3, max_new_tokens=96, repetitions=1)


@pytest.fixture(scope="module")
def worker() -> Worker:
    heads = {kind: str(bundled_heads(kind)) for kind in KINDS}
    tasks = ("humaneval", "gsm8k", "litbench", "sharegpt", MIXED)
    banks = {task: {kind: str(bundled_bank(task, kind)) for kind in KINDS} for task in tasks}
    return Worker(Workplace("bundled", heads, banks, "cpu", torch.get_num_threads()))


@pytest.fixture(scope="module")
def summary(worker: Worker) -> Summary:
    outcomes = [worker.run(unit, ARMS, SETTINGS) for unit in make_units(SUITES, {}, ARMS, SETTINGS, {})]
    requests = pa.concat_tables([outcome.requests for outcome in outcomes])
    return summarise(requests, pa.concat_tables([outcome.steps for outcome in outcomes]))


@pytest.mark.parametrize("suite", SUITES)
def test_every_lossless_arm_scores_what_plain_decoding_scores(suite: str, summary: Summary) -> None:
    rows = {row.arm: row for row in summary.arms if row.suite == suite}
    assert set(rows) == set(ARMS) == {*DEFAULT_ARMS, *FOREIGN_BANKS, *LOSSY}
    plain = rows["autoregressive"]
    for arm in LOSSLESS:
        assert rows[arm].identical + rows[arm].ties == rows[arm].requests == SETTINGS.prompts, arm
        assert (rows[arm].score, rows[arm].scored) == (plain.score, SETTINGS.prompts), arm
        assert rows[arm].score is not None
    typical = rows["medusa-typical"]
    assert typical.scored == SETTINGS.prompts
    assert typical.identical < typical.requests, "it is another text, or this test compares nothing"


def test_scores_are_told_with_their_count(summary: Summary) -> None:
    sentences = [sentence for sentence in verdicts(summary) if f"over {SETTINGS.prompts} prompts" in sentence]
    assert [sentence.split(" over")[0] for sentence in sentences] == ["humaneval pass@1", "gsm8k exact match"]
    for sentence in sentences:
        print(sentence)
