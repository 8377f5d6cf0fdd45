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
    """The lines of ours, those that say what a metric is once."""
    lines: dict[str, None] = {}
    for text in texts:
        for line in text.splitlines():
            name = line.split()[2] if line.startswith("#") and len(line.split()) > 2 else line
            if name.startswith(f"ray_{PREFIX}"):
                lines[line] = None
    groups: dict[str, list[str]] = {}
    current = ""
    for line in lines:
        if line.startswith("#"):
            current = line.split()[2]
        else:
            current = current if line.startswith(current) and current else line.partition("{")[0]
        groups.setdefault(current, []).append(line)
    # A metric's lines must stand together.
    return "".join(
        f"{line}\n" for group in groups.values() for line in sorted(group, key=lambda one: not one.startswith("#"))
    )


async def _of(session: aiohttp.ClientSession, address: str) -> str:
    try:
        async with session.get(address) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return ""
