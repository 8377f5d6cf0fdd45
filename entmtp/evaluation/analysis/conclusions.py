"""Conclusions from the numbers, as sentences. No speedup is stated without its interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from entmtp import methods
from entmtp.evaluation.analysis.overlap_description import overlap_caveats
from entmtp.evaluation.analysis.score import metric
from entmtp.evaluation.analysis.summary import ALL_SUITES, SAMPLE, ArmSummary, Speedup, Summary, verdict
from entmtp.intervals import CONFIDENCE, FEWEST_PROMPTS, METHOD, Estimate, interval, percent, ratio
from entmtp.methods import AUTOREGRESSIVE, ENTMTP
from entmtp.provenance import CHANGED

_NAMED = 10  # prompts that were set aside; the report's provenance names all
_ENTMTP_AGAINST = ("medusa", "hydra", "medusa-best", "hydra-best", "random", AUTOREGRESSIVE)
_ZERO = 5e-4  # nats per token that three digits don't show
_HEADLINE_AGAINST = (AUTOREGRESSIVE, "medusa", "hydra", "hydra-best")
_BEST_AGAINST = ("hydra", "medusa", "hydra-best", "random", AUTOREGRESSIVE)


def conclusions(summary: Summary) -> list[str]:
    """One sentence per comparison over all suites, each once, then the method, then the quality of the texts.

    First entmtp against each arm, then the best adaptive arm, then each adaptive arm against the yardsticks, then the
    other arms against autoregressive decoding.
    """
    pairs = [(ENTMTP, other) for other in _ENTMTP_AGAINST]
    if (best := summary.best_adaptive) is not None:
        pairs += [(best, other) for other in _BEST_AGAINST]
    pairs += [(arm, yardstick) for arm in methods.adaptive() for yardstick in methods.yardsticks()]
    pairs += [(row.arm, AUTOREGRESSIVE) for row in summary.arms]
    return [*_compared(summary, pairs), *method(summary), *quality_conclusions(summary)]


def _undrafted(summary: Summary) -> list[str]:
    """A sentence for each adaptive arm on the suites where it never drafted."""
    suites = {
        arm: [row.suite for row in summary.arms if row.arm == arm and row.nodes == 0] for arm in methods.adaptive()
    }
    return [
        f"{', '.join(found)}: {arm} drafted nothing: at this machine's step costs no tree was predicted to be faster"
        " than plain decoding."
        for arm, found in suites.items()
        if found
    ]


def headline(summary: Summary) -> list[str]:
    """The sentences to read first: the best adaptive arm against the usual methods, and whether the text is the same.

    All of them are in `conclusions`.
    """
    best = summary.best_adaptive
    pairs = [] if best is None else [(best, other) for other in _HEADLINE_AGAINST]
    return [*_compared(summary, pairs), *_identity(summary.arms)]


def _compared(summary: Summary, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A sentence per pair (arm, baseline) that was compared over all suites, each once."""
    rows = [row for pair in dict.fromkeys(pairs) if (row := summary.speedup(ALL_SUITES, *pair)) is not None]
    compared = comparisons(summary)
    yardsticks = methods.yardsticks()
    return [share_of(row, compared) if row.baseline in yardsticks else _against(row, compared) for row in rows]


def quality_conclusions(summary: Summary) -> list[str]:
    """Sentences about the arms' texts: the tasks' scores, their likelihood, and whether they are identical."""
    return [*_quality(summary), *_likelihoods(summary), *_identity(summary.arms)]


def comparisons(summary: Summary) -> int:
    """Number of possible comparisons over all suites, those of each arm that might have been the best included."""
    pairs = {(ENTMTP, other) for other in _ENTMTP_AGAINST}
    pairs |= {(arm, other) for arm in methods.adaptive() for other in (*_BEST_AGAINST, *methods.yardsticks())}
    pairs |= {(row.arm, AUTOREGRESSIVE) for row in summary.arms}
    return sum((row.arm, row.baseline) in pairs for row in summary.speedups if row.suite == ALL_SUITES)


def method(summary: Summary) -> list[str]:
    """The method of the sentences' intervals; empty where there are none."""
    if not any(row.ratio.has_interval for row in summary.speedups if row.suite == ALL_SUITES):
        return []
    compared = comparisons(summary)
    together = (
        f"; wide enough to hold all together with {CONFIDENCE:.0%}: {compared} comparisons were possible, those of"
        " every adaptive arm that might have been the best included (Bonferroni)"
    )
    return [f"intervals: {METHOD}{together if compared > 1 else ''}"]


def caveats(summary: Summary, provenance: Mapping[str, Any]) -> list[str]:
    """Warnings that a reader needs in order to judge the numbers."""
    sentences = []
    samples = [suite for suite, source in summary.sources.items() if SAMPLE in source]
    if samples:
        sentences.append(
            f"{', '.join(samples)}: prompts are this project's own small sample of the kind, not the public data set."
        )
    if provenance.get("profile") == "quick":
        sentences.append("Profile quick: few prompts and short texts show that everything works; it is not a study.")
    few = [f"{suite} ({count})" for suite, count in _prompts(summary).items() if count < FEWEST_PROMPTS]
    if few:
        sentences.append(f"No interval, and so no speedup, below {FEWEST_PROMPTS} prompts: {', '.join(few)}.")
    settings = provenance.get("settings", {})
    if temperature := settings.get("temperature"):
        sentences.append(
            f"Texts are drawn at temperature {temperature}, with one seed for all arms and repetitions of a prompt:"
            " lossless arms write the very text that autoregressive draws."
        )
    if settings.get("acceptance") == "typical":
        sentences.append(
            "Typical acceptance (Medusa's, arXiv 2401.10774) writes other texts than the model: only autoregressive is"
            " lossless here. The profiles that are named lossless are the same without it."
        )
    if (dtype := provenance.get("dtype", "float32")) != "float32":
        sentences.append(
            f"All ran in {dtype}: which of two close tokens is the likelier then changes with how many are computed"
            " at once, for plain decoding too. Whether a method keeps the text, only float32 shows."
        )
    sentences += _undrafted(summary)
    constant = [row.suite for row in summary.arms if row.arm == ENTMTP and row.trees == 1 and row.nodes > 0]
    if constant:
        sentences.append(
            f"{', '.join(constant)}: entmtp used one tree at every step of these texts, so it is a static tree there."
        )
    sentences += overlap_caveats(provenance)
    measured, commit = provenance.get("measured_commits", []), provenance.get("git_commit")
    if commit is not None and set(measured) - {commit}:
        sentences.append(f"Not all of it was measured by the code of commit {commit}, but at {', '.join(measured)}.")
    if any(one.endswith(CHANGED) for one in measured):
        sentences.append(f"Files of the code differed from the commit ({CHANGED}) that it was measured at.")
    if unsettled := sum(row.unsettled_steps for row in summary.arms):
        captures = sum(row.captures for row in summary.arms)
        sentences.append(
            f"{unsettled} timed steps ran a part for the first time or captured it as a CUDA graph ({captures}):"
            " they took longer than they would again."
        )
    if set_aside := provenance.get("set_aside"):
        rest = [f"and {len(set_aside) - _NAMED} more"] * (len(set_aside) > _NAMED)
        named = "; ".join([*set_aside[:_NAMED], *rest])
        sentences.append(f"{len(set_aside)} prompts failed in every try and are in no number: {named}.")
    if any(row.requests == row.prompts for row in summary.arms):
        sentences.append("Some arms have a single repetition: their times carry the machine's noise.")
    return sentences


def _against(row: Speedup, compared: int) -> str:
    found = row.adjusted_for(compared)
    if not found.has_interval:
        return f"{row.arm} against {row.baseline}: no claim, {_too_few(row)}"
    if (word := verdict(found)) == "inconclusive":
        return f"{row.arm} against {row.baseline}: {word}, {ratio(found)}, the interval holds 1 ({_extent(row)})"
    return f"{row.arm} is {word} than {row.baseline}: {ratio(found)} ({_extent(row)})"


def share_of(row: Speedup, compared: int = 1) -> str:
    """The percentage of a yardstick's speed that an arm reaches, as a sentence."""
    found = row.adjusted_for(compared)
    if not found.has_interval:
        return f"{row.arm}'s share of {row.baseline}'s speed: no claim, {_too_few(row)}"
    return f"{row.arm} reaches {percent(found)} of {row.baseline}'s speed ({_extent(row)})"


def _too_few(row: Speedup) -> str:
    return f"an interval needs at least {FEWEST_PROMPTS} prompts in each suite and one has {row.fewest_prompts}"


def _extent(row: Speedup) -> str:
    return f"{row.suites} suite{'s' * (row.suites > 1)}, {row.prompts} prompts, paired t"


def _identity(arms: Sequence[ArmSummary]) -> list[str]:
    """A sentence on whether the other arms wrote the tokens of autoregressive decoding."""
    others = [row for row in arms if row.arm not in (AUTOREGRESSIVE, *methods.lossy())]
    requests, identical, ties = (
        sum(getattr(row, field) for row in others) for field in ("requests", "identical", "ties")
    )
    if not requests:
        return []
    if identical == requests:
        return [f"all {requests} requests of the other arms wrote exactly the tokens of autoregressive decoding"]
    unexplained = requests - identical - ties
    return [
        f"{identical} of {requests} requests of the other arms wrote exactly the tokens of autoregressive decoding; "
        f"{ties} first differ at a tie of the two best tokens, {unexplained} differ without one"
    ]


def _quality(summary: Summary) -> list[str]:
    """A sentence per suite with a score, arms of equal score together."""
    sentences = []
    for suite in summary.suites:
        rows = [row for row in summary.arms if row.suite == suite and row.score is not None]
        by_score: dict[str, list[str]] = {}
        for row in rows:
            by_score.setdefault(f"{row.score:.3f}", []).append(row.arm)
        if rows:
            shared = len(by_score) == 1
            found = [f"{score} with {'every arm' if shared else ', '.join(arms)}" for score, arms in by_score.items()]
            prompts = max(row.scored for row in rows)
            unsolved = " (none was solved, so it compares nothing)" if not any(row.score for row in rows) else ""
            sentences.append(f"{suite} {metric(suite)} over {prompts} prompts: {'; '.join(found)}{unsolved}")
    return sentences


def _likelihoods(summary: Summary) -> list[str]:
    """A sentence on the arms' log-likelihood against plain decoding's. The intervals hold all together."""
    rows = [row for row in summary.likelihoods if row.suite == ALL_SUITES]
    found = {row.arm: one for row in rows if (one := row.adjusted_for(len(rows))).has_interval}
    same = [arm for arm, one in found.items() if _is_zero(one)]
    parts = [f"the same with {'every arm' if len(same) == len(found) else ', '.join(same)}"] if same else []
    parts += [f"{one.value:+.3f} {interval(one, 3)} with {arm}" for arm, one in found.items() if arm not in same]
    if not parts:
        return []
    return [f"log-likelihood of the texts against autoregressive's, nats per token: {'; '.join(parts)}"]


def _is_zero(estimate: Estimate) -> bool:
    """Whether the whole interval is 0 to the printed digits."""
    low, high = estimate.low, estimate.high
    return low is not None and high is not None and low > -_ZERO and high < _ZERO


def _prompts(summary: Summary) -> dict[str, int]:
    return {suite: max(row.prompts for row in summary.arms if row.suite == suite) for suite in summary.suites}
