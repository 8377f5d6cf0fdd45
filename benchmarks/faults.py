#!/usr/bin/env python3
"""Faults under load: outcomes of requests when replicas, nodes or ingresses die, or the service is redeployed.

    python -m benchmarks.faults
    python -m benchmarks.faults --repetitions 1 --fault ingress

Two replicas of the bundled model run, each on a node of its own (nodes of `ray.cluster_utils`, all on this machine).
Half of the concurrent clients stream. A request is *lost* if its client gets neither the complete answer nor a clear
error. A text is *wrong* if it differs from the text without faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import aiohttp
import psutil
import torch
import typer
from rich.console import Console

from benchmarks.lib.record import Cell, RecordOption, Table, UncommittedOption, deliver, make_record
from entmtp.cli_errors import plain_errors
from entmtp.errors import EntMTPError
from entmtp.policies.step_cost import hardware_name
from entmtp.ray_head import LOCAL_SETTINGS, free_ports

APP, ENGINE, MODEL = "entmtp", "dynamic", "smollm2-135m"
PROMPTS = [f"{ask} {thing}." for ask in ("Describe", "Tell me about") for thing in ("rain", "bread", "ships", "trees")]
_SETTLE_SECONDS = 2.0
_RECOVERY_SECONDS = 180.0
NOTES = (
    "lost: neither a whole answer nor a clear error reached the client. wrong: a text that differs from the one without"
    " faults. leaked: slots that are not free when all clients have gone. reported: requests that ended with a clear"
    " error. recovery: from the fault until as many replicas run as should.",
)


@dataclass
class LoadOutcome:
    """Outcomes of the clients' requests during one fault."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    recovery: float = 0.0
    leaked: int = 0


class Clients:
    """A number of concurrent clients, each of which sends its next request after the last answer."""

    def __init__(self, url: str, count: int, tokens: int) -> None:
        self._url, self._count, self._tokens = url, count, tokens
        self._expected: dict[str, str] = {}

    async def record_expected(self) -> None:
        """Request all texts once without faults, as the expected texts."""
        async with self._session() as session:
            for prompt in PROMPTS:
                kind, text = await self._send(session, prompt)
                if kind != "answered":
                    raise EntMTPError(f"service: it does not answer before any fault ({kind}: {text})")
                self._expected[prompt] = text

    @contextlib.asynccontextmanager
    async def sending(self) -> Any:
        """Send requests within the block, then wait for the last answers; yields the outcome."""
        outcome = LoadOutcome()
        ended = asyncio.Event()

        async def client(number: int) -> None:
            at = number
            async with self._session() as session:
                while not ended.is_set():
                    prompt = PROMPTS[at % len(PROMPTS)]
                    kind, text = await (self._stream if at % 2 else self._send)(session, prompt)
                    wrong = kind == "answered" and text != self._expected[prompt]
                    outcome.outcomes["wrong" if wrong else kind] += 1
                    if kind != "answered":
                        outcome.errors[text] += 1
                    at += 1

        tasks = [asyncio.create_task(client(number)) for number in range(self._count)]
        try:
            yield outcome
        finally:
            ended.set()
            await asyncio.gather(*tasks)

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_RECOVERY_SECONDS))

    def _body(self, prompt: str, stream: bool) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        return {
            "model": MODEL,
            "messages": messages,
            "max_tokens": self._tokens,
            "temperature": 0,
            "stream": stream,
        }

    async def _send(self, session: aiohttp.ClientSession, prompt: str) -> tuple[str, str]:
        try:
            async with session.post(f"{self._url}/v1/chat/completions", json=self._body(prompt, False)) as response:
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return "lost", repr(error)
        if response.status == 200:
            return "answered", answer["choices"][0]["message"]["content"]
        return "reported", answer["error"]["message"]

    async def _stream(self, session: aiohttp.ClientSession, prompt: str) -> tuple[str, str]:
        text = ""
        try:
            async with session.post(f"{self._url}/v1/chat/completions", json=self._body(prompt, True)) as response:
                if response.status != 200:
                    return "reported", (await response.json())["error"]["message"]
                async for line in response.content:
                    data = line.decode().removeprefix("data: ").strip()
                    if data == "[DONE]":
                        return "answered", text
                    if not data:
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        return "reported", chunk["error"]["message"]
                    text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return "lost", repr(error)
        return "lost", "the stream ended without a word"


class ServiceCluster:
    """A cluster of several nodes on this machine that runs the service."""

    def __init__(self, port: int) -> None:
        from ray.cluster_utils import Cluster

        self.port = port
        self.slots = 8
        self.ray = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.ray.add_node(num_cpus=1) for _ in range(2)]

    def deploy(self, least: int = 2, most: int | None = None) -> None:
        """Deploy the service, or change it, with ``least`` to ``most`` engine replicas."""
        from ray import serve

        from deployments.app import build
        from deployments.settings import AppArgs

        # One user keeps less than a second outstanding, eight keep several.
        scaling = {"min_replicas": least, "max_replicas": most or least, "target_seconds": 2.5}
        scaling |= {"upscale_delay_s": 1.0, "downscale_delay_s": 5.0}
        engine = {"name": ENGINE, "model_name": MODEL, "num_cpus": 1, "autoscaling": scaling}
        engine |= {"engine": {"slots": self.slots, "context": 512, "max_waiting": 64}}
        args = AppArgs.parse(engines=[engine])
        serve.run(build(args), name=APP, route_prefix="/", blocking=False)

    def running(self, name: str) -> int:
        """Number of running replicas of a deployment."""
        from deployments.ray_internals import running_replicas

        return running_replicas(APP)[name]

    def pids(self, name: str) -> set[int]:
        """Process ids of a deployment's replicas."""
        title = f"ray::ServeReplica:{APP}:{name}"
        return {one.pid for one in psutil.process_iter() if _title(one).startswith(title)}

    async def wait(self, engines: int = 2, ingresses: int = 2) -> float:
        """Wait until so many replicas run; returns the seconds it took."""
        began = time.monotonic()
        await _until(lambda: (self.running(ENGINE), self.running("ingress")) == (engines, ingresses))
        return time.monotonic() - began

    async def leaked(self) -> int:
        """Number of reports with outstanding tokens although no requests are running."""
        from ray import serve

        handle = serve.get_deployment_handle(ENGINE, APP)
        await asyncio.sleep(_SETTLE_SECONDS)
        reports = [await handle.record_autoscaling_stats.remote() for _ in range(8)]
        return sum(one["outstanding_tokens"] > 0 for one in reports)


async def _until(recovered: Callable[[], bool]) -> None:
    """Wait until ``recovered`` is true, or raise after ``_RECOVERY_SECONDS``."""
    began = time.monotonic()
    while not recovered():
        if time.monotonic() - began > _RECOVERY_SECONDS:
            raise EntMTPError(f"service: it did not recover within {_RECOVERY_SECONDS:g} s; Ray's logs may say why")
        await asyncio.sleep(0.1)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


async def kill_replica(cluster: ServiceCluster) -> float:
    """Kill an engine replica by SIGKILL."""
    return await _kill(cluster, ENGINE)


async def kill_ingress(cluster: ServiceCluster) -> float:
    """Kill an ingress by SIGKILL."""
    return await _kill(cluster, "ingress")


async def _kill(cluster: ServiceCluster, name: str) -> float:
    gone = min(cluster.pids(name))
    began = time.monotonic()
    os.kill(gone, signal.SIGKILL)
    # Serve calls a dead replica running until it has noticed.
    await _until(lambda: len(alive := cluster.pids(name)) >= 2 and gone not in alive)
    await cluster.wait()
    return time.monotonic() - began


async def kill_node(cluster: ServiceCluster) -> float:
    """Remove a node with all its processes, and add another one."""
    gone = cluster.nodes.pop(0)
    before = cluster.pids(ENGINE)
    began = time.monotonic()
    # Ray starts and stops nodes in the main thread only; clients wait for that long, their requests do not.
    cluster.ray.remove_node(gone, allow_graceful=False)
    cluster.nodes.append(cluster.ray.add_node(num_cpus=1))
    # Serve calls replicas of a dead node running until it has noticed.
    await _until(lambda: len(alive := cluster.pids(ENGINE)) >= len(before) and alive != before)
    await cluster.wait()
    return time.monotonic() - began


async def redeploy(cluster: ServiceCluster) -> float:
    """Change the number of slots, so that Serve replaces all replicas one after another."""
    before = cluster.pids(ENGINE)
    cluster.slots = 15 - cluster.slots
    began = time.monotonic()
    await asyncio.to_thread(cluster.deploy)
    await _until(lambda: not before & cluster.pids(ENGINE))
    await cluster.wait()
    return time.monotonic() - began


async def scale_down(cluster: ServiceCluster) -> float:
    """Scale from two replicas to one; the removed replica finishes its requests first."""
    began = time.monotonic()
    await asyncio.to_thread(cluster.deploy, 1)
    await cluster.wait(engines=1)
    await _until(lambda: len(cluster.pids(ENGINE)) == 1)
    taken = time.monotonic() - began
    await asyncio.to_thread(cluster.deploy)
    await cluster.wait()
    return taken


FAULTS: dict[str, Callable[[ServiceCluster], Any]] = {
    "replica": kill_replica,
    "node": kill_node,
    "ingress": kill_ingress,
    "redeploy": redeploy,
    "scale 2 to 1": scale_down,
}


@contextlib.contextmanager
def service_cluster() -> Iterator[ServiceCluster]:
    """Start a cluster with the service, and stop it at the end of the block."""
    import ray
    from ray import serve

    from deployments.serve_local import node_environment

    (port,) = free_ports(1)
    os.environ |= LOCAL_SETTINGS | node_environment(dict(os.environ))
    cluster = ServiceCluster(port)
    try:
        ray.init(address=cluster.ray.address, logging_level=logging.ERROR, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
        cluster.deploy()
        yield cluster
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.ray.shutdown()


async def run_faults(
    cluster: ServiceCluster, faults: Sequence[str], repetitions: int, users: int, tokens: int
) -> dict[str, list[LoadOutcome]]:
    """Inject every fault ``repetitions`` times under load."""
    await cluster.wait()
    clients = Clients(f"http://127.0.0.1:{cluster.port}", users, tokens)
    await clients.record_expected()
    found: dict[str, list[LoadOutcome]] = {fault: [] for fault in faults}
    console = Console(stderr=True)
    for fault in faults:
        for number in range(repetitions):
            async with clients.sending() as outcome:
                await asyncio.sleep(_SETTLE_SECONDS)
                outcome.recovery = await FAULTS[fault](cluster)
                await asyncio.sleep(_SETTLE_SECONDS)
            outcome.leaked = await cluster.leaked()
            found[fault].append(outcome)
            result = f"{dict(outcome.outcomes)}, recovery {outcome.recovery:.1f} s"
            console.print(f"{fault} {number + 1}/{repetitions}: {result}", highlight=False)
    return found


def main(
    fault: Annotated[list[str] | None, typer.Option(help="replica, node, ingress, redeploy or 'scale 2 to 1'")] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="of each")] = 5,
    users: Annotated[int, typer.Option(min=1, help="clients at once")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="of each answer")] = 32,
    record: RecordOption = None,
    uncommitted: UncommittedOption = False,
) -> None:
    """Inject faults under load, and count the outcomes."""
    with plain_errors("faults", interrupted="nothing was recorded"):
        faults = fault or list(FAULTS)
        if unknown := [name for name in faults if name not in FAULTS]:
            raise EntMTPError(f"fault: '{unknown[0]}' is unknown; choose from {', '.join(FAULTS)}")
        with service_cluster() as cluster:
            found = asyncio.run(run_faults(cluster, faults, repetitions, users, tokens))
        machine = hardware_name(torch.device("cpu"))
        tables = [_table(found, users), _errors(found)]
        deliver(make_record("faults", "Faults under load", machine, tables, NOTES), record, uncommitted)


def _table(found: dict[str, list[LoadOutcome]], users: int) -> Table:
    rows: list[list[Cell]] = []
    for fault, times in found.items():
        total: Counter[str] = sum((one.outcomes for one in times), Counter())
        recovery = sorted(one.recovery for one in times)
        counts = [total[kind] for kind in ("answered", "reported", "lost", "wrong")]
        leaked = sum(one.leaked for one in times)
        rows.append([fault, len(times), *counts, leaked, round(recovery[len(recovery) // 2], 1)])
    columns = ["fault", "times", "answered", "reported", "lost", "wrong", "leaked", "recovery, s"]
    return Table(title=f"{users} clients, two replicas", columns=columns, rows=rows)


def _errors(found: dict[str, list[LoadOutcome]]) -> Table:
    rows: list[list[Cell]] = []
    for fault, times in found.items():
        total: Counter[str] = sum((one.errors for one in times), Counter())
        rows += [[fault, count, message] for message, count in total.most_common()]
    return Table(title="Errors that clients received", columns=["fault", "times", "message"], rows=rows)


if __name__ == "__main__":
    typer.run(main)
