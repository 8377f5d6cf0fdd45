"""The part of KubeRay's and Kubernetes' schemas that our manifests use, as types in which an unknown key is an error.

From the custom resource definitions of ray.io/v1 and the Kubernetes API reference (core/v1). A key that is not here is
either a mistake or has to be looked up there and added.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

Quantity = str | int


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class _Amounts(_Object):
    cpu: Quantity | None = None
    memory: Quantity | None = None
    gpu: int | None = Field(None, alias="nvidia.com/gpu")


class _Resources(_Object):
    requests: _Amounts | None = None
    limits: _Amounts | None = None


class _Capabilities(_Object):
    drop: list[str]


class _Security(_Object):
    allow_privilege_escalation: bool | None = None
    capabilities: _Capabilities | None = None


class _HttpGet(_Object):
    path: str
    port: int


class _Probe(_Object):
    http_get: _HttpGet
    initial_delay_seconds: int | None = None
    period_seconds: int | None = None
    timeout_seconds: int | None = None
    failure_threshold: int | None = None


class _SecretKey(_Object):
    name: str
    key: str


class _ValueFrom(_Object):
    secret_key_ref: _SecretKey


class _Variable(_Object):
    name: str
    value: str | None = None
    value_from: _ValueFrom | None = None


class _Port(_Object):
    name: str | None = None
    container_port: int


class _Mount(_Object):
    name: str
    mount_path: str
    read_only: bool | None = None


class _Container(_Object):
    name: str
    image: str
    image_pull_policy: str | None = None
    security_context: _Security
    env: list[_Variable] = []
    ports: list[_Port] = []
    resources: _Resources
    readiness_probe: _Probe
    liveness_probe: _Probe
    volume_mounts: list[_Mount] = []


class _Profile(_Object):
    type: str


class _PodSecurity(_Object):
    run_as_non_root: bool
    run_as_user: int
    run_as_group: int | None = None
    fs_group: int | None = None
    seccomp_profile: _Profile | None = None


class _Toleration(_Object):
    key: str | None = None
    operator: str | None = None
    effect: str | None = None


class _Claimed(_Object):
    claim_name: str
    read_only: bool | None = None


class _EmptyFolder(_Object):
    medium: str | None = None
    size_limit: Quantity | None = None


class _Volume(_Object):
    name: str
    persistent_volume_claim: _Claimed | None = None
    empty_dir: _EmptyFolder | None = None


class _Pod(_Object):
    automount_service_account_token: bool | None = None
    security_context: _PodSecurity
    tolerations: list[_Toleration] = []
    containers: list[_Container]
    volumes: list[_Volume] = []


class _Template(_Object):
    spec: _Pod


class _StartOptions(_Object):
    """Options of `ray start`, which Kubernetes wants as texts."""

    cpus: str | None = Field(None, alias="num-cpus")
    dashboard_host: str | None = Field(None, alias="dashboard-host")


class _Group(_Object):
    ray_start_params: _StartOptions
    template: _Template


class _Workers(_Group):
    group_name: str
    replicas: int | None = None
    min_replicas: int
    max_replicas: int


class _Autoscaler(_Object):
    idle_timeout_seconds: int | None = None
    resources: _Resources | None = None
    security_context: _Security | None = None


class _Cluster(_Object):
    ray_version: str
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: _Autoscaler | None = None
    head_group_spec: _Group
    worker_group_specs: list[_Workers]


class _Metadata(_Object):
    name: str


class _ServiceSpec(_Object):
    serve_config_v2: str = Field(alias="serveConfigV2")
    ray_cluster_config: _Cluster


class _Service(_Object):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: _Metadata
    spec: _ServiceSpec


class _JobSpec(_Object):
    entrypoint: str
    shutdown_after_job_finishes: bool | None = None
    ttl_seconds_after_finished: int | None = None
    backoff_limit: int | None = None
    ray_cluster_spec: _Cluster


class _Job(_Object):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: _Metadata
    spec: _JobSpec


class _Storage(_Object):
    storage: Quantity


class _StorageResources(_Object):
    requests: _Storage


class _ClaimSpec(_Object):
    access_modes: list[str]
    resources: _StorageResources


class _Claim(_Object):
    api_version: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: _Metadata
    spec: _ClaimSpec


_MANIFEST: TypeAdapter[_Service | _Job | _Claim] = TypeAdapter(
    Annotated[_Service | _Job | _Claim, Field(discriminator="kind")]
)


def check_manifest(given: Any) -> None:
    """Raise pydantic's ValidationError if Kubernetes does not know every field of a manifest."""
    _MANIFEST.validate_python(given)
