"""The application that `serve deploy deployments/config.yaml` starts: ingress, engines and rate limiter."""

# Serve reads the annotation of the builder's argument, so it must not be a string.

import secrets
import time
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from deployments.engines.autoscaling import TokensPolicy
from deployments.engines.rate_limit import BoundRateLimiter
from deployments.engines.replica import BoundEngineReplica
from deployments.engines.router import PrefixRouter
from deployments.http.ingress import BoundIngress
from deployments.settings import AppArgs, EngineArgs, LimitArgs, RoutingArgs
from deployments.start_progress import report_progress

_HEALTH_SECONDS = 2.0
_INGRESS_REQUESTS = 10_000
_PROBE_SECONDS = 0.2
_DRAIN_SECONDS = 0.5


def build(args: AppArgs) -> serve.Application:
    """Build the Serve application from the config file's `args`, which are validated before anything starts."""
    report_progress("application", f"starting {', '.join(one.name for one in args.engines)}")
    engines = {one.name: _engine(one, args.routing, args.limits) for one in args.engines}
    limits = args.limits
    limited = limits.requests_per_minute is not None or limits.tokens_per_minute is not None
    limiter = (
        serve.deployment(name="Limiter", ray_actor_options={"num_cpus": 0})(BoundRateLimiter).bind(limits)
        if limited
        else None
    )
    ingress = serve.deployment(
        name="ingress",
        num_replicas=args.ingress_replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_INGRESS_REQUESTS,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=limits.request_seconds,
        graceful_shutdown_wait_loop_s=_DRAIN_SECONDS,
        logging_config=LoggingConfig(enable_access_log=False),
    )(serve.ingress()(BoundIngress))
    # All ingresses share the secret, and it is stored nowhere: hashes of users can't be compared between two starts.
    secret = secrets.token_bytes(32)
    return ingress.bind(args, engines, limiter, secret, int(time.time()))


def _engine(args: EngineArgs, routing: RoutingArgs, limits: LimitArgs) -> serve.Application:
    scaling = args.autoscaling
    autoscaling = AutoscalingConfig(
        min_replicas=scaling.min_replicas,
        initial_replicas=max(1, scaling.min_replicas),
        max_replicas=scaling.max_replicas,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        look_back_period_s=max(2.0, scaling.upscale_delay_s),
        metrics_interval_s=1.0,
        policy=AutoscalingPolicy(
            policy_function=TokensPolicy, policy_kwargs={"target_seconds": scaling.target_seconds}
        ),
    )
    options: dict[str, Any] = {
        "request_router_class": PrefixRouter,
        "request_router_kwargs": {
            "imbalance_tokens": routing.imbalance_tokens,
            "queue_seconds": limits.queue_seconds,
        },
        "request_routing_stats_period_s": routing.stats_period_s,
        # Interval at which each queued call probes replicas; every probe takes time from a busy replica.
        "initial_backoff_s": _PROBE_SECONDS,
        "max_backoff_s": _PROBE_SECONDS,
    }
    deployment = serve.deployment(
        name=args.name,
        autoscaling_config=autoscaling,
        request_router_config=RequestRouterConfig(**options),
        ray_actor_options=_resources(args),
        # The engine's own queue is first come, first served; further calls wait in the ingress.
        max_ongoing_requests=_replica_capacity(args),
        max_queued_requests=_queue_capacity(args, limits),
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=limits.request_seconds,
        graceful_shutdown_wait_loop_s=_DRAIN_SECONDS,
        logging_config=LoggingConfig(enable_access_log=False),
    )(BoundEngineReplica)
    return deployment.bind(args)


def _replica_capacity(args: EngineArgs) -> int:
    """Number of calls that one replica accepts, running and waiting in its engine."""
    return args.engine.slots + args.engine.max_waiting


def _queue_capacity(args: EngineArgs, limits: LimitArgs) -> int:
    """Number of calls queued in an ingress at once; Serve counts each call until its replica is chosen."""
    return max(limits.queued_requests, args.autoscaling.max_replicas * _replica_capacity(args))


def _resources(args: EngineArgs) -> dict[str, Any]:
    cpus = args.num_cpus or (_smallest_node() if args.device == "cpu" else 1.0)
    environment = {
        "OMP_NUM_THREADS": str(max(1, round(cpus))),
        "OMP_WAIT_POLICY": "passive",  # threads that spin between steps take the cores that the ingress needs
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {"num_cpus": cpus, "num_gpus": args.num_gpus, "runtime_env": {"env_vars": environment}}


def _smallest_node() -> float:
    """Smallest number of CPUs of a node, among the nodes that have CPUs."""
    return min((node["Resources"]["CPU"] for node in ray.nodes() if node["Resources"].get("CPU")), default=1.0)
