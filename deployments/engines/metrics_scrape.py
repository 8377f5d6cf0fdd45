"""Scrape of the service's metrics from all nodes of the cluster, each of which exports its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import aiohttp
import ray

from deployments.engines.metric_definition import PREFIX
from deployments.engines.metrics import zero_lines
from deployments.engines.vllm_metrics import vllm_lines

_SECONDS = 5.0
_OWNER = re.compile(r'[{,](?:engine|model)="([^"]*)"')


async def scrape_metrics(models: Mapping[str, str]) -> str:
    """All nodes' metrics of this service in Prometheus' text format; a node that does not answer is left out.

    A metric that an engine has not exported yet is zero. Those that vLLM has too are there again, under its names.

    Args:
        models: served model of each engine.
    """
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes if node["Alive"]
    ]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session:
        texts = await asyncio.gather(*(_fetch(session, address) for address in addresses))
    merged = merge_metrics(texts, zero_lines(list(models), list(dict.fromkeys(models.values()))))
    return merged + vllm_lines(merged, models)


def merge_metrics(texts: Sequence[str], zeros: str = "") -> str:
    """Merge the service's lines of several nodes, grouped by metric, with one HELP and one TYPE each.

    Lines of ``zeros`` are used where no node exports the same metric of the same engine.
    """
    metrics: dict[str, dict[str, str]] = {}
    exported: set[tuple[str, str]] = set()
    for name, line in _own_lines(texts):
        exported.add((name, _owner(line)))
        metrics.setdefault(name, {}).setdefault(_key(line), line)
    for name, line in _own_lines([zeros]):
        if line.startswith("#") or (name, _owner(line)) not in exported:
            metrics.setdefault(name, {}).setdefault(_key(line), line)
    return "".join(f"{line}\n" for lines in metrics.values() for line in lines.values())


def _own_lines(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the lines of this service's metrics, each with the metric's name."""
    for text in texts:
        name = ""
        for line in text.splitlines():
            is_comment = line.startswith("# ")
            if is_comment:
                name = line.split()[2]
            if name.startswith(f"ray_{PREFIX}") and (is_comment or line.startswith(name)):
                yield name, line


def _key(line: str) -> str:
    """Key under which duplicate lines are dropped; a metric has one HELP and one TYPE."""
    return " ".join(line.split()[:2]) if line.startswith("#") else line


def _owner(line: str) -> str:
    """Engine or model of a sample; empty for other lines."""
    found = None if line.startswith("#") else _OWNER.search(line)
    return "" if found is None else found[1]


async def _fetch(session: aiohttp.ClientSession, address: str) -> str:
    try:
        async with session.get(address) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return ""
