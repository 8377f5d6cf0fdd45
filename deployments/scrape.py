"""The service's metrics, gathered from the nodes of the cluster, each of which exports its own."""

from __future__ import annotations

import asyncio

import aiohttp
import ray

from deployments.metrics import PREFIX

_SECONDS = 5.0


async def scraped() -> str:
    """All nodes' metrics of this service in Prometheus' text format; a node that does not answer is left out."""
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes if node["Alive"]
    ]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session:
        texts = await asyncio.gather(*(_of(session, address) for address in addresses))
    return merged_text(texts)


def merged_text(texts: list[str]) -> str:
    """The lines of ours; those of a metric stand together, what says what it is once."""
    metrics: dict[str, dict[str, None]] = {}
    for text in texts:
        name = ""
        for line in text.splitlines():
            about = line.startswith("# ")
            if about:
                name = line.split()[2]
            if name.startswith(f"ray_{PREFIX}") and (about or line.startswith(name)):
                metrics.setdefault(name, {})[line] = None
    return "".join(f"{line}\n" for lines in metrics.values() for line in lines)


async def _of(session: aiohttp.ClientSession, address: str) -> str:
    try:
        async with session.get(address) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return ""
