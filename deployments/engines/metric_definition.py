"""Definition of a metric, and the one metric of the proxies, which therefore import nothing of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ray.util.metrics import Counter

PREFIX = "entmtp_"


@dataclass(frozen=True)
class MetricDefinition:
    """Definition of a metric.

    Attributes:
        label: a label in addition to the engine's name, if the metric has one.
        values: values of the label that are exported from the start.
        boundaries: bucket boundaries of a histogram.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    description: str
    label: str | None = None
    values: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def labels(self) -> list[dict[str, str]]:
        """Sets of labels that are exported from the start."""
        return [{}] if self.label is None else [{self.label: value} for value in self.values]


REFUSED = MetricDefinition("counter", "requests_refused", "requests whose engine was full")
"""Refused requests by ``model``, counted in the proxy, through which all requests go."""


def refused_counter() -> Counter:
    """Counter of requests that got a 429 because their engine was full, by ``model``."""
    return Counter(PREFIX + REFUSED.name, REFUSED.description, tag_keys=("model",))
