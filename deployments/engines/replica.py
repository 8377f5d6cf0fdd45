"""Serve deployment of an engine: each replica runs one engine and takes calls from the ingresses."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from deployments.engines.autoscaling import OUTSTANDING, SPEED
from deployments.engines.metrics import EngineMetrics
from deployments.engines.prefix_hash import block_hashes
from deployments.protocol.messages import CallStream, Failure
from deployments.ray_internals import NodeBound
from deployments.settings import EngineArgs, EngineChanges
from deployments.start_progress import report_progress
from entmtp.decoding.async_engine import AsyncEngine, EngineDeadError
from entmtp.decoding.engine import Engine
from entmtp.decoding.outputs import EngineStatistics, RequestOutput
from entmtp.decoding.request import InvalidRequestError, Request
from entmtp.decoding.scheduler import EngineFullError
from entmtp.errors import EntMTPError
from entmtp.loading import load_method, policy_of
from entmtp.method_spec import MethodSpec, check_method
from entmtp.settings import EngineSettings

_log = logging.getLogger("ray.serve")
_METRICS_SECONDS = 1.0
_SWITCH_SECONDS = 5e-4
_NICENESS = 4
"""Niceness of an engine's threads on a CPU, which use all of its cores. Proxy and ingress need little CPU time, but
need it at once."""


class EngineReplica:
    """Runs one model with one method."""

    def __init__(self, args: EngineArgs) -> None:
        self._args = args
        self._deployed = MethodSpec(
            name=args.method,
            task=args.task,
            model=args.model,
            heads=args.heads,
            bank=args.bank,
            device=args.device,
            dtype=args.dtype,
            kernels=args.kernels,
            weights=args.weights,
        )
        self._method = self._deployed
        # The engine's thread and the event loop share the GIL; by default each would wait 5 ms for the other.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._engine = AsyncEngine(self._load)
        self._metrics = EngineMetrics(args.name)
        self._speed = 0.0
        self._reporting: asyncio.Task[None] | None = None
        self._started = False

    def _load(self) -> Engine:
        """Load the engine in its own thread; the compute threads that it starts inherit the niceness."""
        if self._args.device == "cpu":
            os.nice(_NICENESS)
        report = partial(report_progress, self._args.name)
        report(f"loading model {self._args.model} for {self._args.method}")
        engine = load_method(self._deployed, report, self._args.engine)[0]
        report(f"loaded ({engine.backbone.kernels_description})")
        return engine

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change the policy, bank or limits between two steps; running calls continue.

        A wrong setting is logged and changes nothing. An exception would make Serve stop one replica after another for
        a misspelt word.

        Raises:
            EntMTPError: a setting is wrong with which the replica starts.
        """
        try:
            await self._change(EngineChanges.parse(**user_config))
        except EntMTPError as error:
            if not self._started:
                raise
            _log.error("engine %s: user_config is refused, nothing was changed: %s", self._args.name, error)

    async def _change(self, changes: EngineChanges) -> None:
        given = changes.model_dump(exclude_none=True)
        renamed = {
            "name" if name == "method" else name: given[name] for name in ("method", "task", "bank") if name in given
        }
        method = replace(self._deployed, **renamed)
        check_method(method)
        limits: dict[str, Any] = {name: given[name] for name in EngineSettings.model_fields if name in given}
        settings = self._args.engine.model_copy(update=limits)
        loaded = self._engine.engine
        policy = await asyncio.to_thread(policy_of, method, loaded.backbone, loaded.heads, settings, _log.info)
        await self._engine.call(lambda engine: engine.reconfigure(policy, settings))
        self._method = method

    async def generate(self, call: Request) -> CallStream:
        """Yield an empty output, then the output of each step; a failure ends the answer."""
        if not self._engine.healthy:
            yield Failure("unavailable", f"engine {self._args.name}: its loop has ended")
            return
        yield RequestOutput(call.id)
        metrics = self._metrics.start_request(len(call.prompt))
        try:
            # Closed also when the client disconnects, so that the slot is free at the next step.
            async with aclosing(self._engine.generate(call)) as stream:
                async for output in stream:
                    metrics.progress(output)
                    if output.finish_reason != "error":  # the engine raises the error itself next
                        yield self._with_method(output)
        except InvalidRequestError as error:
            yield Failure("invalid", str(error))
        except EngineFullError as error:
            yield Failure("late" if error.own else "full", str(error), error.retry_seconds)
        except EngineDeadError as error:
            yield Failure("dead", str(error))
        except EntMTPError as error:
            yield Failure("failed", str(error))

    def _with_method(self, output: RequestOutput) -> RequestOutput:
        """Add the method to the statistics; `user_config` may have changed it since the engine's start."""
        if output.stats is None:
            return output
        return replace(output, stats=replace(output.stats, method=self._method.name, task=self._method.task))

    def check_health(self) -> None:
        """Raise if the engine's loop has ended, so that Serve replaces the replica."""
        self._started = True
        if not self._engine.healthy:
            raise RuntimeError(f"engine {self._args.name}: its loop has ended")

    async def record_routing_stats(self) -> dict[str, Any]:
        """Statistics for routers: outstanding tokens and hashes of cached prefixes.

        Serve calls this from the replica's start on, so it also starts the reporting of metrics.
        """
        self._begin_reporting()
        statistics, texts = await self._engine.call(_statistics_and_texts)
        prefixes = {one for salt, text in texts for one in block_hashes(text, salt)}
        return {"at": time.time(), "outstanding_tokens": statistics.outstanding_tokens, "prefixes": sorted(prefixes)}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Statistics for the autoscaling policy."""
        statistics = await self._engine.call(lambda engine: engine.statistics)
        self._speed = 1e3 * statistics.goodput or self._speed
        return {OUTSTANDING: statistics.predicted_tokens, SPEED: self._speed}

    def _begin_reporting(self) -> None:
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.create_task(self._report())

    async def _report(self) -> None:
        while True:
            self._metrics.set_gauges(await self._engine.call(lambda engine: engine.statistics))
            await asyncio.sleep(_METRICS_SECONDS)

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close()


def _statistics_and_texts(engine: Engine) -> tuple[EngineStatistics, Sequence[tuple[str, Sequence[int]]]]:
    return engine.statistics, engine.cached_prefixes if engine.settings.prefix_reuse else []


class BoundEngineReplica(NodeBound, EngineReplica):
    """The engine's replica as Serve runs it."""
