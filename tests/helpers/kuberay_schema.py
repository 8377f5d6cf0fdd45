"""The part of KubeRay's and Kubernetes' schemas that our manifests use: keys by name, types, and what is required.

From the custom resource definitions of ray.io/v1 and the Kubernetes API reference (core/v1). A key that is not here is
either a mistake or has to be looked up there and added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

QUANTITY = (str, int)
REQUIRED = "!"  # after a key that must be there

_RESOURCES = {kind: {"cpu": QUANTITY, "memory": QUANTITY, "nvidia.com/gpu": int} for kind in ("requests", "limits")}
_SECURITY = {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}}
_PROBE = {
    "httpGet!": {"path!": str, "port!": int},
    "initialDelaySeconds": int,
    "periodSeconds": int,
    "timeoutSeconds": int,
    "failureThreshold": int,
}
_CONTAINER = {
    "name!": str,
    "image!": str,
    "imagePullPolicy": str,
    "securityContext!": _SECURITY,
    "env": [{"name!": str, "value": str, "valueFrom": {"secretKeyRef": {"name!": str, "key!": str}}}],
    "ports": [{"name": str, "containerPort!": int}],
    "resources!": _RESOURCES,
    "readinessProbe!": _PROBE,
    "livenessProbe!": _PROBE,
    "volumeMounts": [{"name!": str, "mountPath!": str, "readOnly": bool}],
}
_POD = {
    "automountServiceAccountToken": bool,
    "securityContext!": {
        "runAsNonRoot!": bool,
        "runAsUser!": int,
        "runAsGroup": int,
        "fsGroup": int,
        "seccompProfile": {"type!": str},
    },
    "tolerations": [{"key": str, "operator": str, "effect": str}],
    "containers!": [_CONTAINER],
    "volumes": [
        {
            "name!": str,
            "persistentVolumeClaim": {"claimName!": str, "readOnly": bool},
            "emptyDir": {"medium": str, "sizeLimit": QUANTITY},
        }
    ],
}
_GROUP = {"rayStartParams!": {"num-cpus": str, "dashboard-host": str}, "template!": {"spec!": _POD}}
_CLUSTER = {
    "rayVersion!": str,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"idleTimeoutSeconds": int, "resources": _RESOURCES, "securityContext": _SECURITY},
    "headGroupSpec!": _GROUP,
    "workerGroupSpecs!": [
        _GROUP | {"groupName!": str, "replicas": int, "minReplicas!": int, "maxReplicas!": int},
    ],
}
_METADATA = {"name!": str}
SCHEMAS: Mapping[tuple[str, str], Any] = {
    ("ray.io/v1", "RayService"): {
        "apiVersion!": str,
        "kind!": str,
        "metadata!": _METADATA,
        "spec!": {"serveConfigV2!": str, "rayClusterConfig!": _CLUSTER},
    },
    ("ray.io/v1", "RayJob"): {
        "apiVersion!": str,
        "kind!": str,
        "metadata!": _METADATA,
        "spec!": {
            "entrypoint!": str,
            "shutdownAfterJobFinishes": bool,
            "ttlSecondsAfterFinished": int,
            "backoffLimit": int,
            "rayClusterSpec!": _CLUSTER,
        },
    },
    ("v1", "PersistentVolumeClaim"): {
        "apiVersion!": str,
        "kind!": str,
        "metadata!": _METADATA,
        "spec!": {"accessModes!": [str], "resources!": {"requests!": {"storage!": QUANTITY}}},
    },
}


def problems(given: Any) -> list[str]:
    """Errors of a manifest; none if Kubernetes knows every field of it."""
    schema = SCHEMAS.get((given.get("apiVersion"), given.get("kind")))
    return ["apiVersion, kind: unknown"] if schema is None else list(_problems(given, schema, ""))


def _problems(given: Any, schema: Any, where: str) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from _in_object(given, schema, where)
    elif isinstance(schema, list):
        if not isinstance(given, list):
            yield f"{where}: not a list"
            return
        for number, one in enumerate(given):
            yield from _problems(one, schema[0], f"{where}[{number}]")
    elif not isinstance(given, schema) or (isinstance(given, bool) and schema is not bool):
        yield f"{where}: {given!r} has another type"


def _in_object(given: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if not isinstance(given, dict):
        yield f"{where}: not an object"
        return
    known = {key.removesuffix(REQUIRED): inner for key, inner in schema.items()}
    for key in (key.removesuffix(REQUIRED) for key in schema if key.endswith(REQUIRED)):
        if key not in given:
            yield f"{where}.{key}: missing"
    for key, value in given.items():
        if key not in known:
            yield f"{where}.{key}: unknown"
        else:
            yield from _problems(value, known[key], f"{where}.{key}")
