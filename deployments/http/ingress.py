"""The ingress deployment: the HTTP API in front of the engines. Two replicas run by default, so that one may die."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from ray import serve

from deployments.engines.client import EngineClient
from deployments.engines.metrics_scrape import scrape_metrics
from deployments.http.access_log import LogSink
from deployments.http.auth import load_keys, require_keys
from deployments.http.routes import make_api
from deployments.log_file import LogFile
from deployments.proxy_settings import ProxySettings, publish_proxy_settings
from deployments.ray_internals import NodeBound, http_host, running_replicas
from deployments.settings import AppArgs

_STATUS_SECONDS = 1.0


class Ingress:
    """Serve deployment with handles to all engines; Serve calls it for its ASGI application."""

    def __init__(
        self, args: AppArgs, handles: dict[str, Any], limiter: Any | None, secret: bytes, created: int
    ) -> None:
        self._keys = load_keys(args.api_keys_file)
        require_keys(http_host(), self._keys, args.allow_anonymous)
        self._client = EngineClient(args, handles, limiter)
        context = serve.get_replica_context()
        self._app = context.app_name
        self._log = LogFile(args.log_folder, f"ingress-{context.replica_id.unique_id}")
        self._secret, self._created = secret, created
        publish_proxy_settings(ProxySettings(args.log_folder, tuple(args.cors_origins)))
        self._ready_engines: tuple[float, dict[str, bool]] = (0.0, {})

    def __serve_build_asgi_app__(self) -> FastAPI:
        log = LogSink(self._log.write, self._secret, self._client.args.log_prompts)
        return make_api(self._client, self._keys, self._ready, self._metrics, log, self._created)

    async def _metrics(self) -> str:
        return await scrape_metrics({one.name: one.model_name for one in self._client.args.engines})

    async def _ready(self) -> dict[str, bool]:
        """Whether each engine takes requests; the status of Serve is read at most once a second."""
        at, ready = self._ready_engines
        if time.monotonic() - at > _STATUS_SECONDS:
            ready = await asyncio.to_thread(self._engines_running)
            self._ready_engines = (time.monotonic(), ready)
        return ready

    def _engines_running(self) -> dict[str, bool]:
        running = running_replicas(self._app)
        engines = self._client.args.engines
        # An engine that may scale to zero starts a replica for the first request, so it counts as ready.
        return {one.name: running.get(one.name, 0) > 0 or not one.autoscaling.min_replicas for one in engines}


class BoundIngress(NodeBound, Ingress):
    """The ingress as Serve runs it."""
