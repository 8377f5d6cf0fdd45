"""Message of a service that is ready, with the commands to use it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deployments.settings import AppArgs

_TOKENS = 64


class RunningService(NamedTuple):
    """Addresses of a running service.

    Attributes:
        address: URL of the service.
        dashboard: URL of Ray's dashboard, to which jobs and other configurations are sent.
        logs: folder of Ray's logs, including those of the engines.
        has_keys: whether clients must send an API key.
    """

    address: str
    dashboard: str
    logs: Path
    has_keys: bool


def ready_message(running: RunningService, config: Mapping[str, Any]) -> str:
    """Text of several lines; the first has the service's address."""
    address, dashboard = running.address, running.dashboard
    args = AppArgs.parse(**config["applications"][0]["args"])
    job = f"{_installed('ray')} job submit --address {dashboard} --working-dir . --"
    job += ' python jobs/benchmark.py --results "$PWD/results"'
    return f"""
ready: {address}

{_curl(running, args.engines[0].model_name)}

Any OpenAI client works with base_url {address}/v1; {address}/docs lists everything.
dashboard: {dashboard}
logs: {running.logs}; of requests, {args.log_folder.expanduser()}
change what is served: {_installed("serve")} deploy FILE --address {dashboard}
run a job of a checkout on the same cluster, from its root:
       {job}{_job_advice(args)}
Ctrl-C stops the service when the requests that run are finished; twice, it stops at once."""


def _job_advice(args: AppArgs) -> str:
    """Resources for which a job on the same cluster would wait, and the option that avoids it."""
    on_gpus = [one.name for one in args.engines if one.device != "cpu"]
    greedy = [one.name for one in args.engines if one.device == "cpu" and one.num_cpus is None]
    if on_gpus:
        remedy = f"it wants whole GPUs and waits for those that engine {on_gpus[0]} has; --device cpu needs none"
    elif greedy:
        remedy = (
            f"it waits for CPUs, which engine {greedy[0]} has all of: give that num_cpus in a --config, and the"
            " job --cpus-per-worker"
        )
    else:
        used = sum((one.num_cpus or 0) * one.autoscaling.max_replicas for one in args.engines)
        remedy = f"it wants all CPUs of a node: give it --cpus-per-worker, as engines may take {used:g}"
    return f"\n       {remedy}"


def _curl(running: RunningService, model: str) -> str:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    body |= {"max_tokens": _TOKENS, "stream": True}
    key = "  -H 'Authorization: Bearer KEY' \\\n" if running.has_keys else ""
    return (
        f"curl -N {running.address}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"{key}  -d {shlex.quote(json.dumps(body))}"
    )


def _installed(name: str) -> str:
    """Path of a command that is installed with this interpreter, relative to the working folder where possible."""
    path, here = Path(sys.executable).with_name(name), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
