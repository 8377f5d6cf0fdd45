"""Processes of the service load only what they run."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from ray import cloudpickle

from deployments.app import build
from deployments.settings import AppArgs

WITHOUT_TORCH = """
import sys
from ray import cloudpickle
import deployments.http.proxy_middleware
cloudpickle.loads(bytes.fromhex(sys.argv[1]))
print([name for name in ("torch", "transformers", "deployments.app") if name in sys.modules])
"""


def bound_deployments() -> tuple[Any, Any]:
    """Deployments of the ingress and of its rate limiter, as Serve gets them."""
    engine = {"name": "e", "model_name": "m", "num_cpus": 1}
    ingress: Any = build(AppArgs.parse(engines=[engine], limits={"requests_per_minute": 1}))._bound_deployment
    return ingress, ingress.init_args[2]._bound_deployment


def test_a_proxy_and_the_rate_limiter_do_not_load_pytorch() -> None:
    _, limiter = bound_deployments()
    pickled = cloudpickle.dumps(limiter.func_or_class).hex()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, pickled], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "[]\n"


def test_an_ingress_is_made_without_the_module_that_imports_the_engine() -> None:
    ingress, _ = bound_deployments()
    pickled = cloudpickle.dumps(ingress.func_or_class)
    assert b"deployments.http.ingress" in pickled
    assert b"deployments.app" not in pickled
