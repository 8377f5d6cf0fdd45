"""The paper's claims (arXiv 2606.27550) against the study's results, as sentences made from its tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from entmtp import methods
from entmtp.evaluation.analysis.summary import ALL_SUITES, ArmSummary, Speedup, Summary
from entmtp.intervals import Estimate, interval, percent, ratio
from entmtp.methods import AUTOREGRESSIVE, ENTMTP

_PAPER_OVER_HYDRA = (1.09, 1.15)
_PAPER_OVER_MEDUSA = 1.36
_EASY = 1.5  # plain steps that a published tree must cost before we say that beating it is easy
_STATIC = "hydra-best"
_OWN_BANK = "entmtp-dynamic"  # the arms with other banks differ from it in their bank alone
_SHUFFLED = "entmtp-dynamic"  # `random` uses its trees in another order
_OTHER_BANKS = {"entmtp-transfer": "the bank of another suite", "entmtp-mixed": "one bank for all suites"}
_SHARE = (
    "A share is the arm's speed over the yardstick's, on the same prompts. Both yardsticks know the text: bank-oracle"
    " takes the best of the bank's trees at each step; hindsight verifies the right path alone, which is the most that"
    " these heads' guesses can gain."
)
_NOT_RUN = "Not measured: the study lacks an arm that this needs."


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the results on it as sentences."""

    title: str
    found: list[str]


def claims(summary: Summary) -> list[Claim]:
    """All claims, in the order of the page."""
    best = summary.best_adaptive or ENTMTP
    made = [
        Claim("Entropy predicts the accepted length", list(_entropy(summary))),
        Claim("EntMTP beats the published trees of Hydra and Medusa", list(_published(summary, best))),
        Claim("The paper's policy beats the best static tree of the suite", list(_ladder(summary))),
        Claim("The best adaptive arm beats the best static tree", list(_against(summary, best, _STATIC))),
        Claim("Choosing in time beats the same trees at random", list(_against(summary, _SHUFFLED, "random"))),
        Claim("Never slower than autoregressive decoding", list(_never_slower(summary))),
        Claim("How much of what hindsight gains is reached", list(_shares(summary))),
        Claim("A bank for the suite beats other banks", list(_banks(summary))),
    ]
    return [Claim(claim.title, claim.found or [_NOT_RUN]) for claim in made]


def _entropy(summary: Summary) -> Iterator[str]:
    rows = [row for row in summary.entropy_correlations if row.signal == "entropy"]
    if not rows:
        return
    holds = sum(_below_zero(row.correlation) for row in rows)
    yield f"Holds on {holds} of {len(rows)} suites: there the interval of the correlation lies below 0."
    for row in rows:
        word = "holds" if _below_zero(row.correlation) else "not seen"
        yield (
            f"{summary.label(row.suite)}: {word}. Correlation of a step's entropy with its accepted tokens "
            f"{row.correlation.value:.2f} {interval(row.correlation)} ({row.arm}, {row.steps} steps of {row.prompts} "
            "prompts)."
        )


def _below_zero(estimate: Estimate) -> bool:
    return estimate.high is not None and estimate.high < 0


def _published(summary: Summary, best: str) -> Iterator[str]:
    yield from against_paper(summary, best)
    for tree in ("hydra", "medusa"):
        yield from _price(summary, tree)


def against_paper(summary: Summary, best: str) -> Iterator[str]:
    """The speedups that the paper reports, as measured with entmtp and with the ``best`` adaptive arm."""
    low, high = _PAPER_OVER_HYDRA
    for arm in dict.fromkeys((ENTMTP, best)):
        yield from _compared_with_paper(summary, arm, "hydra", low, high, f"{low:.2f}x to {high:.2f}x")
        yield from _compared_with_paper(
            summary, arm, "medusa", 1.0, _PAPER_OVER_MEDUSA, f"up to {_PAPER_OVER_MEDUSA:.2f}x"
        )


def _compared_with_paper(
    summary: Summary, arm: str, baseline: str, low: float, high: float, paper: str
) -> Iterator[str]:
    """All suites' speedups in one sentence, each with the position of its interval against the paper's range."""
    rows = _by_suite(summary, arm, baseline)
    if not rows:
        return
    found = [f"{summary.label(row.suite)} {ratio(row.ratio)} ({_position(row.ratio, low, high)})" for row in rows]
    yield f"{arm} against {baseline}, where the paper has {paper}: {', '.join(found)}."


def _position(found: Estimate, low: float, high: float) -> str:
    """The position of an interval against a range: 'above', 'below' or 'agrees'."""
    if found.low is None or found.high is None:
        return "too few prompts"
    if found.low > high:
        return "above"
    return "below" if found.high < low else "agrees"


def _price(summary: Summary, arm: str) -> Iterator[str]:
    """The cost of a step of a published tree in plain steps, which says how hard the tree is to beat."""
    plain = {row.suite: _step_ms(row) for row in summary.arms if row.arm == AUTOREGRESSIVE}
    trees = [row for row in summary.arms if row.arm == arm and row.suite in plain]
    if not trees:
        return
    prices = [_step_ms(row) / plain[row.suite] for row in trees]
    nodes = max(row.nodes for row in trees)
    verdict = (
        "on a machine without arithmetic to spare, such as a CPU, this comparison is easy to win, and the best static"
        " tree is the one to beat"
        if min(prices) > _EASY
        else "the tree costs little more than a plain step, so this comparison is a fair one"
    )
    yield (
        f"A step of {arm}'s published tree ({nodes:.0f} nodes) takes as long as {_span(prices)} plain steps here: "
        f"{verdict}."
    )


def _span(values: list[float], digits: int = 1) -> str:
    """The range of the values: '4.5 to 4.6', or '4.5' where both ends print alike."""
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values))))


def _step_ms(row: ArmSummary) -> float:
    return row.draft_ms + row.verify_ms + row.accept_ms + row.policy_ms + row.other_ms


def _against(summary: Summary, arm: str, baseline: str) -> Iterator[str]:
    rows = _by_suite(summary, arm, baseline)
    if not rows:
        return
    yield _count(rows, f"{arm} against {baseline}")
    overall = summary.speedup(ALL_SUITES, arm, baseline)
    for row in [*rows, *([overall] if overall is not None and len(rows) > 1 else [])]:
        yield _compared(summary, row)


def _ladder(summary: Summary) -> Iterator[str]:
    """The paper's own policy against the best static tree in one sentence, then the number of trees that it used."""
    rows = _by_suite(summary, ENTMTP, _STATIC)
    if not rows:
        return
    overall = summary.speedup(ALL_SUITES, ENTMTP, _STATIC)
    shown = [*rows, *([overall] if overall is not None and len(rows) > 1 else [])]
    found = [f"{summary.label(row.suite)} {ratio(row.ratio)} ({row.verdict})" for row in shown]
    known = [row.ratio.value for row in rows if row.ratio.has_interval]
    span = f"{_span(known, 2)} of the speed of {_STATIC}" if known else f"no claim against {_STATIC}"
    yield f"{ENTMTP}, the paper's ladder of trees by entropy: {span}, suite by suite: {', '.join(found)}."
    trees = {row.suite: row.trees for row in summary.arms if row.arm == ENTMTP}
    used = [f"{summary.label(suite)} {count}" for suite, count in trees.items()]
    yield f"Different trees that it used, where one makes it a static tree: {', '.join(used)}."


def _never_slower(summary: Summary) -> Iterator[str]:
    arms = [arm for arm in dict.fromkeys(row.arm for row in summary.arms) if arm.startswith(ENTMTP)]
    rows = [row for arm in arms for row in _by_suite(summary, arm, AUTOREGRESSIVE)]
    if not rows:
        return
    slower = [row for row in rows if row.verdict == "slower"]
    unknown = any(row.verdict == "no claim" for row in rows)
    holds = "Does not hold" if slower else "Not known" if unknown else "Holds"
    yield f"{holds}. {_count(rows, 'Adaptive arms, suite by suite')}"
    for row in slower:
        yield _compared(summary, row)
    for arm in arms:
        overall = summary.speedup(ALL_SUITES, arm, AUTOREGRESSIVE)
        if overall is not None:
            yield _compared(summary, overall)


def _shares(summary: Summary) -> Iterator[str]:
    """Each adaptive arm's share of each yardstick's speed, after a definition of a share."""
    pairs = product(methods.adaptive(), methods.yardsticks())
    sentences = [sentence for arm, yardstick in pairs for sentence in _share(summary, arm, yardstick)]
    if sentences:
        yield _SHARE
        yield from sentences


def _share(summary: Summary, arm: str, yardstick: str) -> Iterator[str]:
    """'entmtp reaches of bank-oracle's speed: gsm8k 76% [75%, 78%], all suites 77% [76%, 78%].'"""
    rows = _by_suite(summary, arm, yardstick)
    if not rows:
        return
    overall = summary.speedup(ALL_SUITES, arm, yardstick)
    shown = [*rows, *([overall] if overall is not None and len(rows) > 1 else [])]
    yield (
        f"{arm} reaches of {yardstick}'s speed: "
        + ", ".join(f"{summary.label(row.suite)} {percent(row.ratio)}" for row in shown)
        + "."
    )


def _banks(summary: Summary) -> Iterator[str]:
    for other, bank in _OTHER_BANKS.items():
        rows = _by_suite(summary, _OWN_BANK, other)
        if rows:
            yield _count(rows, f"{_OWN_BANK} with the suite's own bank against {other}, which has {bank}")
        for row in rows:
            yield _compared(summary, row)


def _by_suite(summary: Summary, arm: str, baseline: str) -> list[Speedup]:
    rows = [summary.speedup(suite, arm, baseline) for suite in summary.suites]
    return [row for row in rows if row is not None]


def _count(rows: list[Speedup], what: str) -> str:
    """Number of comparisons by verdict: 'entmtp against random: faster in 3, level in 1 of 4 comparisons.'"""
    verdicts = [row.verdict for row in rows]
    counted = [f"{word} in {verdicts.count(word)}" for word in ("faster", "level", "slower") if word in verdicts]
    if "no claim" in verdicts:
        counted.append(f"too few prompts in {verdicts.count('no claim')}")
    return f"{what}: {', '.join(counted)} of {len(rows)} comparison{'s' * (len(rows) > 1)}."


def _compared(summary: Summary, row: Speedup) -> str:
    """A comparison as a sentence: 'gsm8k: entmtp is 1.20x [1.10, 1.30] as fast as hydra: faster.'"""
    what = f"{summary.label(row.suite)}: {row.arm}"
    if not row.ratio.has_interval:
        return f"{what} against {row.baseline}: no claim, too few prompts ({row.fewest_prompts})."
    return f"{what} is {ratio(row.ratio)} as fast as {row.baseline}: {row.verdict}."
