"""The paper's claims (arXiv 2606.27550) against the study's results, as sentences made from its tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from entmtp import methods
from entmtp.evaluation.analysis.summary import ALL_SUITES, ArmSummary, Speedup, Summary, verdict
from entmtp.intervals import CONFIDENCE, Estimate, interval, percent, ratio
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
    """All claims, in the order of the page.

    The intervals of a claim's speedups and shares hold together, with those of every arm that might have been the best.
    """
    best = summary.best_adaptive or ENTMTP
    made = [
        Claim("Entropy predicts the accepted length", list(_entropy(summary))),
        Claim("EntMTP beats the published trees of Hydra and Medusa", list(_published(summary, best))),
        Claim("The paper's policy beats the best static tree of the suite", list(_ladder(summary))),
        Claim(
            "The best adaptive arm beats the best static tree",
            list(_against(summary, best, _STATIC, _candidates(summary))),
        ),
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
    found = [_direction(row.correlation) for row in rows]
    yield (
        f"Holds on {found.count('holds')} of {len(rows)} suites: there the interval of the correlation lies below 0."
        " Each interval holds for its own suite."
    )
    for row, word in zip(rows, found, strict=True):
        yield (
            f"{summary.label(row.suite)}: {word}. Correlation of a step's entropy with its accepted tokens "
            f"{row.correlation.value:.2f} {interval(row.correlation)} ({row.arm}, {row.steps} steps of {row.prompts} "
            "prompts)."
        )


def _direction(estimate: Estimate) -> str:
    """'holds' below 0, 'the reverse' above, 'not seen' if the interval holds 0 or there is none."""
    if estimate.low is None or estimate.high is None:
        return "not seen"
    return "holds" if estimate.high < 0 else "the reverse" if estimate.low > 0 else "not seen"


def _published(summary: Summary, best: str) -> Iterator[str]:
    yield from against_paper(summary, best)
    for tree in ("hydra", "medusa"):
        yield from _price(summary, tree)


def against_paper(summary: Summary, best: str) -> Iterator[str]:
    """The speedups that the paper reports, as measured with entmtp and with the ``best`` adaptive arm."""
    low, high = _PAPER_OVER_HYDRA
    papers = {
        "hydra": (low, high, f"{low:.2f}x to {high:.2f}x"),
        "medusa": (1.0, _PAPER_OVER_MEDUSA, f"up to {_PAPER_OVER_MEDUSA:.2f}x"),
    }
    compared = _candidates(summary) * sum(len(_by_suite(summary, best, baseline)) for baseline in papers)
    for arm in dict.fromkeys((ENTMTP, best)):
        for baseline, (least, most, said) in papers.items():
            if rows := _by_suite(summary, arm, baseline):
                ratios = [(summary.label(row.suite), row.adjusted_for(compared)) for row in rows]
                found = [f"{suite} {ratio(one)} ({_position(one, least, most)})" for suite, one in ratios]
                yield f"{arm} against {baseline}, where the paper has {said}: {', '.join(found)}."
    yield from _together(compared)


def _candidates(summary: Summary) -> int:
    """Number of adaptive arms that ran, from which the best one was chosen."""
    return sum(any(row.arm == arm for row in summary.arms) for arm in methods.adaptive())


def _position(found: Estimate, low: float, high: float) -> str:
    """The position of an interval against a range: 'above', 'below' or 'overlaps'."""
    if found.low is None or found.high is None:
        return "too few prompts"
    if found.low > high:
        return "above"
    return "below" if found.high < low else "overlaps"


def _together(compared: int) -> Iterator[str]:
    """The sentence about the intervals of ``compared`` comparisons; none where there is one or none."""
    if compared > 1:
        yield f"The intervals hold all together with {CONFIDENCE:.0%}, for {compared} comparisons."


def _price(summary: Summary, arm: str) -> Iterator[str]:
    """The cost of a step of a published tree in plain steps, which says how hard the tree is to beat."""
    plain = {row.suite: _step_ms(row) for row in summary.arms if row.arm == AUTOREGRESSIVE}
    trees = [row for row in summary.arms if row.arm == arm and row.suite in plain]
    if not trees:
        return
    prices = [_step_ms(row) / plain[row.suite] for row in trees]
    nodes = max(row.nodes for row in trees)
    if min(prices) > _EASY:
        meaning = (
            "on a machine without arithmetic to spare, such as a CPU, this comparison is easy to win, and the best"
            " static tree is the one to beat"
        )
    elif max(prices) > _EASY:
        meaning = "on some suites this comparison is easy to win"
    else:
        meaning = "the tree costs little more than a plain step, so this comparison is a fair one"
    yield (
        f"A step of {arm}'s published tree ({nodes:.0f} nodes) takes as long as {_span(prices)} plain steps here: "
        f"{meaning}."
    )


def _span(values: list[float], digits: int = 1) -> str:
    """The range of the values: '4.5 to 4.6', or '4.5' where both ends print alike."""
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values))))


def _step_ms(row: ArmSummary) -> float:
    return row.draft_ms + row.verify_ms + row.accept_ms + row.policy_ms + row.other_ms


def _against(summary: Summary, arm: str, baseline: str, of: int = 1) -> Iterator[str]:
    """The arm, chosen as the best ``of`` several, against the baseline on each suite and on all."""
    rows = _by_suite(summary, arm, baseline)
    if not rows:
        return
    shown = [*rows, *_overall(summary, arm, baseline)]
    compared = len(shown) * of
    yield _count(rows, compared, f"{arm} against {baseline}")
    yield from (_compared(summary, row, compared) for row in shown)
    yield from _together(compared)


def _ladder(summary: Summary) -> Iterator[str]:
    """The paper's own policy against the best static tree in one sentence, then the number of trees that it used."""
    rows = _by_suite(summary, ENTMTP, _STATIC)
    if not rows:
        return
    shown = [*rows, *_overall(summary, ENTMTP, _STATIC)]
    ratios = [(summary.label(row.suite), row.adjusted_for(len(shown))) for row in shown]
    found = [f"{suite} {ratio(one)} ({verdict(one)})" for suite, one in ratios]
    known = [row.ratio.value for row in rows if row.ratio.has_interval]
    span = f"{_span(known, 2)} of the speed of {_STATIC}" if known else f"no claim against {_STATIC}"
    yield f"{ENTMTP}, the paper's ladder of trees by entropy: {span}, suite by suite: {', '.join(found)}."
    yield from _together(len(shown))
    trees = {row.suite: row.trees for row in summary.arms if row.arm == ENTMTP}
    used = [f"{summary.label(suite)} {count}" for suite, count in trees.items()]
    yield f"Different trees that it used, where one makes it a static tree: {', '.join(used)}."


def _never_slower(summary: Summary) -> Iterator[str]:
    """Whether every adaptive arm is faster on every suite: an interval that holds 1 decides neither."""
    arms = [arm for arm in dict.fromkeys(row.arm for row in summary.arms) if arm.startswith(ENTMTP)]
    rows = [row for arm in arms for row in _by_suite(summary, arm, AUTOREGRESSIVE)]
    if not rows:
        return
    overall = [row for arm in arms for row in _overall(summary, arm, AUTOREGRESSIVE)]
    compared = len(rows) + len(overall)
    found = [verdict(row.adjusted_for(compared)) for row in rows]
    slower = [row for row, word in zip(rows, found, strict=True) if word == "slower"]
    holds = "Does not hold" if slower else "Holds" if set(found) == {"faster"} else "Not known"
    yield f"{holds}. {_count(rows, compared, 'Adaptive arms, suite by suite')}"
    yield from (_compared(summary, row, compared) for row in ([*slower, *overall] if overall else rows))
    yield from _together(compared)


def _shares(summary: Summary) -> Iterator[str]:
    """Each adaptive arm's share of each yardstick's speed, after a definition of a share."""
    pairs = list(product(methods.adaptive(), methods.yardsticks()))
    shown = {pair: [*_by_suite(summary, *pair), *_overall(summary, *pair)] for pair in pairs}
    compared = sum(map(len, shown.values()))
    if compared:
        yield _SHARE
    for (arm, yardstick), rows in shown.items():
        if rows:
            shares = [f"{summary.label(row.suite)} {percent(row.adjusted_for(compared))}" for row in rows]
            yield f"{arm} reaches of {yardstick}'s speed: {', '.join(shares)}."
    yield from _together(compared)


def _banks(summary: Summary) -> Iterator[str]:
    found = {other: _by_suite(summary, _OWN_BANK, other) for other in _OTHER_BANKS}
    compared = sum(map(len, found.values()))
    for other, rows in found.items():
        if rows:
            what = f"{_OWN_BANK} with the suite's own bank against {other}, which has {_OTHER_BANKS[other]}"
            yield _count(rows, compared, what)
        yield from (_compared(summary, row, compared) for row in rows)
    yield from _together(compared)


def _by_suite(summary: Summary, arm: str, baseline: str) -> list[Speedup]:
    rows = [summary.speedup(suite, arm, baseline) for suite in summary.suites]
    return [row for row in rows if row is not None]


def _overall(summary: Summary, arm: str, baseline: str) -> list[Speedup]:
    """The comparison over all suites; none where there is one suite, whose own comparison it is."""
    row = summary.speedup(ALL_SUITES, arm, baseline)
    return [] if row is None or row.suites == 1 else [row]


def _count(rows: list[Speedup], compared: int, what: str) -> str:
    """Number of comparisons by verdict: 'entmtp against random: faster in 3, inconclusive in 1 of 4 comparisons.'"""
    found = [verdict(row.adjusted_for(compared)) for row in rows]
    counted = [f"{word} in {found.count(word)}" for word in ("faster", "inconclusive", "slower") if word in found]
    if "no claim" in found:
        counted.append(f"too few prompts in {found.count('no claim')}")
    return f"{what}: {', '.join(counted)} of {len(rows)} comparison{'s' * (len(rows) > 1)}."


def _compared(summary: Summary, row: Speedup, compared: int) -> str:
    """A comparison as a sentence: 'gsm8k: entmtp is 1.20x [1.10, 1.30] as fast as hydra: faster.'"""
    what, found = f"{summary.label(row.suite)}: {row.arm}", row.adjusted_for(compared)
    if not found.has_interval:
        return f"{what} against {row.baseline}: no claim, too few prompts ({row.fewest_prompts})."
    return f"{what} is {ratio(found)} as fast as {row.baseline}: {verdict(found)}."
