"""Table of the quality of the arms' texts: the tasks' own scores, and the log-likelihood under the model."""

from entmtp.evaluation.analysis.score import metric
from entmtp.evaluation.analysis.summary import ArmSummary, Summary
from entmtp.evaluation.report.html_table import HtmlTable
from entmtp.intervals import interval

_DIGITS = 3


def quality_table(summary: Summary) -> HtmlTable:
    """The table, with a row for each suite and arm."""
    return HtmlTable(
        title="Quality of the texts",
        note="Score: pass@1 or exact match, the mean over scored prompts. Log-likelihood: nats per token of the text"
        " under the model at temperature 1, the mean over prompts; difference: paired with autoregressive decoding's"
        " text for the same prompt, so 0 where an arm wrote the very same texts. Same text: requests that"
        " wrote exactly the tokens of autoregressive decoding.",
        headings=("suite", "arm", "prompts", "score", "log-likelihood", "95%", "difference", "95%", "same text"),
        rows=[_cells(summary, row) for row in summary.arms],
    )


def _cells(summary: Summary, row: ArmSummary) -> list[str]:
    against = summary.likelihood(row.suite, row.arm)
    difference = against.difference if against is not None else None
    return [
        summary.label(row.suite),
        row.arm,
        str(row.prompts),
        "" if row.score is None else f"{metric(row.suite)} {row.score:.3f} ({row.scored})",
        f"{row.log_likelihood.value:.{_DIGITS}f}",
        interval(row.log_likelihood, _DIGITS),
        "" if difference is None else f"{difference.value:+.{_DIGITS}f}",
        "" if difference is None else interval(difference, _DIGITS),
        f"{row.identical} of {row.requests}",
    ]
