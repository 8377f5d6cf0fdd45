"""An engine as a Serve deployment: one replica on one device, for calls from the ingress."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from deployments.engines.autoscaling import OUTSTANDING, SPEED
from deployments.engines.metrics import EngineMetrics
from deployments.engines.prefix_hash import block_hashes
from deployments.protocol.messages import Account, Call, Delta, Failure, Placed
from deployments.settings import EngineArgs, EngineChanges
from deployments.start_progress import tell
from entmtp.decoding.async_engine import AsyncEngine, EngineDeadError
from entmtp.decoding.engine import Engine, EngineFullError
from entmtp.decoding.outputs import EngineStatistics, RequestOutput
from entmtp.decoding.request import InvalidRequestError, Request
from entmtp.errors import EntMTPError
from entmtp.loading import MethodSpec, check_method, load_method, policy_of
from entmtp.settings import EngineSettings

_log = logging.getLogger("ray.serve")
_METRICS_SECONDS = 1.0
_SWITCH_SECONDS = 5e-4
_NICENESS = 4
"""Of the threads of an engine on a CPU, which take all there is of it: who passes texts on, or refuses requests, needs
little, and needs it at once."""


class EngineReplica:
    """Serves one model with one method."""

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
        )
        self._method = self._deployed
        # The engine's thread and the event loop share Python's lock; by default each would wait 5 ms for the other.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._served = AsyncEngine(self._load)
        self._metrics = EngineMetrics(args.name)
        self._speed = 0.0
        self._reporting: asyncio.Task[None] | None = None
        self._started = False

    def _load(self) -> Engine:
        """Runs in the engine's own thread; those that it starts for its sums are as nice."""
        if self._args.device == "cpu":
            os.nice(_NICENESS)
        say = partial(tell, self._args.name)
        say(f"loading model {self._args.model} for {self._args.method}")
        engine = load_method(self._deployed, say, self._args.engine)[0]
        say(f"loaded ({engine.backbone.kernels_description})")
        return engine

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes on another policy, bank or limits between two steps; calls that run go on.

        A mistake leaves everything as it was and is logged: Serve stops a replica whose change fails, and would stop
        one after another, for a misspelt word.

        Raises:
            EntMTPError: names what is wrong with what the replica starts with.
        """
        try:
            await self._change(EngineChanges.parse(**user_config))
        except EntMTPError as error:
            if not self._started:
                raise
            _log.error("engine %s: user_config is refused, and all stays as it was: %s", self._args.name, error)

    async def _change(self, changes: EngineChanges) -> None:
        given = changes.model_dump(exclude_none=True)
        renamed = {
            "name" if name == "method" else name: given[name] for name in ("method", "task", "bank") if name in given
        }
        method = replace(self._deployed, **renamed)
        check_method(method)
        limits: dict[str, Any] = {name: given[name] for name in EngineSettings.model_fields if name in given}
        settings = self._args.engine.model_copy(update=limits)
        engine = self._served.engine
        policy = await asyncio.to_thread(policy_of, method, engine.backbone, engine.heads, settings, _log.info)
        await self._served.call(lambda engine: engine.reconfigure(policy, settings))
        self._method = method

    async def generate(self, call: Call) -> AsyncGenerator[Placed | Delta | Failure]:
        """Yields what each step adds to the answer; a failure ends it."""
        if not self._served.healthy:
            yield Failure("unavailable", f"engine {self._args.name}: its loop has ended")
            return
        yield Placed()
        metrics = self._metrics.request(len(call.prompt))
        request = Request(
            call.id,
            call.prompt,
            call.params,
            call.number,
            call.max_nodes,
            call.prompt_number,
            call.cache_salt,
            call.continues_text,
        )
        try:
            # Closed also when nobody listens any more: the slot is free at the next step.
            async with aclosing(self._served.generate(request)) as stream:
                async for progress in stream:
                    metrics.progress(progress)
                    if progress.finish_reason != "error":  # the engine raises the error itself next
                        yield self._delta(progress)
        except InvalidRequestError as error:
            yield Failure("invalid", str(error))
        except EngineFullError as error:
            yield Failure("full", str(error))
        except EngineDeadError as error:
            yield Failure("dead", str(error))
        except EntMTPError as error:
            yield Failure("failed", str(error))

    def _delta(self, progress: RequestOutput) -> Delta:
        account = Account.of(progress.completion, self._method) if progress.finish_reason else None
        return Delta(0, progress.tokens, progress.text, progress.logprobs, progress.finish_reason, account)

    def check_health(self) -> None:
        """Raises if the engine's loop has ended: Serve then replaces the replica."""
        self._started = True
        if not self._served.healthy:
            raise RuntimeError(f"engine {self._args.name}: its loop has ended")

    async def record_routing_stats(self) -> dict[str, Any]:
        """Facts that routers need: how much there is to do, and which beginnings lie in the cache.

        Serve asks from the replica's start on, so that its metrics begin then too.
        """
        self._begin_reporting()
        statistics, texts = await self._served.call(_statistics_and_texts)
        prefixes = {one for salt, text in texts for one in block_hashes(text, salt)}
        return {"at": time.time(), "outstanding_tokens": statistics.outstanding_tokens, "prefixes": sorted(prefixes)}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy needs to know."""
        statistics = await self._served.call(lambda engine: engine.statistics)
        self._speed = 1e3 * statistics.goodput or self._speed
        return {OUTSTANDING: float(statistics.outstanding_tokens), SPEED: self._speed}

    def _begin_reporting(self) -> None:
        if self._reporting is None or self._reporting.done():
            self._reporting = asyncio.create_task(self._report())

    async def _report(self) -> None:
        while True:
            self._metrics.engine(await self._served.call(lambda engine: engine.statistics))
            await asyncio.sleep(_METRICS_SECONDS)

    def __del__(self) -> None:
        if hasattr(self, "_served"):
            self._served.close()


def _statistics_and_texts(engine: Engine) -> tuple[EngineStatistics, Sequence[tuple[str, Sequence[int]]]]:
    return engine.statistics, engine.cached_prefixes if engine.settings.prefix_reuse else []
