"""Summaries of synthetic benchmark rows."""

from dataclasses import replace

from entmtp.evaluation.analysis.summarise import summarise
from entmtp.evaluation.analysis.summary import Summary
from entmtp.evaluation.results.rows import REQUEST_SCHEMA, STEP_SCHEMA, RequestRow, StepRow, as_table

PLAIN, LIKELIER = [-0.9, -0.5, -0.7, -0.4], [-0.5, -0.3, -0.4, -0.1]
"""Log-likelihoods of four prompts' texts, nats per token: plain decoding's, and likelier ones."""


def summary_of(requests: list[RequestRow], steps: list[StepRow]) -> Summary:
    """The summary of the rows."""
    return summarise(as_table(requests, REQUEST_SCHEMA), as_table(steps, STEP_SCHEMA))


def with_seconds(rows: list[RequestRow], seconds: dict[str, float]) -> list[RequestRow]:
    """The same rows with the given time for every request of an arm."""
    return [replace(row, seconds=seconds[row.arm]) for row in rows]


def with_likelihoods(rows: list[RequestRow], by_arm: dict[str, list[float]]) -> list[RequestRow]:
    """The same rows with these log-likelihoods of each arm, prompt by prompt."""
    return [replace(row, log_likelihood=by_arm[row.arm][int(row.prompt_id.rpartition("-")[2])]) for row in rows]
