"""The manifests for KubeRay: every word is known, and everything that they name is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import ValidationError

from deployments.http.auth import VARIABLE
from entmtp.evaluation.run.command import benchmark_command
from tests.helpers.kuberay_schema import check_manifest
from tests.helpers.paths import ROOT
from tests.helpers.strict_files import ENTMTP, FOLDER, constraint, engines_of, image_environment, image_stages, routes

KUBERAY = FOLDER / "kuberay"
Manifest = dict[str, Any]


def manifests(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text(encoding="utf-8")))


def cluster(name: str) -> Manifest:
    """The Ray cluster of a RayService or a RayJob."""
    (manifest,) = manifests(name)
    spec = manifest["spec"]
    return dict(spec["rayClusterConfig"] if "rayClusterConfig" in spec else spec["rayClusterSpec"])


def groups(name: str) -> Iterator[tuple[bool, Manifest]]:
    """Whether it is the head, and the group."""
    found = cluster(name)
    yield True, found["headGroupSpec"]
    for group in found["workerGroupSpecs"]:
        yield False, group


both = pytest.mark.parametrize("name", ["service.yaml", "job.yaml"])


@pytest.mark.parametrize("path", sorted(KUBERAY.iterdir()), ids=lambda path: path.name)
def test_kubernetes_understands_every_word(path: Path) -> None:
    for manifest in manifests(path.name):
        check_manifest(manifest)


def head(manifest: Manifest) -> Manifest:
    return dict(manifest["spec"]["rayClusterConfig"]["headGroupSpec"])


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda given: given.update(apiVersion="ray.io/v1alpha1"), "apiVersion Input should be 'ray.io/v1'"),
        (lambda given: given.update(kind="RayServices"), "'RayServices' .* does not match any of the expected tags"),
        (lambda given: given["spec"].update(serveConfig="x"), "spec.serveConfig Extra inputs are not permitted"),
        (lambda given: given["spec"].pop("serveConfigV2"), "spec.serveConfigV2 Field required"),
        (
            lambda given: head(given)["rayStartParams"].update({"num-cpus": 0}),
            "num-cpus Input should be a .* string",
        ),
        (
            lambda given: head(given)["template"]["spec"].update(containers={}),
            "containers Input should be a .* list",
        ),
        (lambda given: head(given)["template"]["spec"]["containers"][0].pop("resources"), "resources Field required"),
        (
            lambda given: given["spec"]["rayClusterConfig"]["workerGroupSpecs"][0].update(minReplicas=True),
            "minReplicas Input should be a valid integer",
        ),
    ],
)
def test_a_mistake_is_told(change: Callable[[Manifest], object], reported: str) -> None:
    (given,) = manifests("service.yaml")
    change(given)
    with pytest.raises(ValidationError) as refusal:
        check_manifest(given)
    assert re.search(reported, " ".join(str(refusal.value).split()))


@both
def test_ray_and_the_images_are_of_the_tested_versions(name: str) -> None:
    assert cluster(name)["rayVersion"] == constraint("ray")
    for is_head, group in groups(name):
        target = "cpu" if is_head else "cuda"
        assert target in image_stages()
        assert [one["image"] for one in group["template"]["spec"]["containers"]] == [f"entmtp:{ENTMTP}-{target}"]


@both
def test_the_head_computes_nothing_and_every_worker_has_a_gpu(name: str) -> None:
    for is_head, group in groups(name):
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory"} <= set(resources["limits"])
        assert resources["limits"].get("nvidia.com/gpu") == (None if is_head else 1)
        assert group["rayStartParams"].get("num-cpus") == ("0" if is_head else None)
        if not is_head:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@both
def test_containers_run_as_the_images_user_with_no_privileges(name: str) -> None:
    for is_head, group in groups(name):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        user = str(pod["securityContext"]["runAsUser"])
        assert ("USER", user) in image_stages()["cpu" if is_head else "cuda"]
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@both
def test_volumes_are_there_and_where_the_image_expects_them(name: str) -> None:
    claims = {claim["metadata"]["name"]: claim["spec"]["accessModes"] for claim in manifests("storage.yaml")}
    pods_of: dict[str, int] = {}
    for _, group in groups(name):
        pod = group["template"]["spec"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        assert mounts["cache"] == image_environment("cuda")["ENTMTP_CACHE"]
        assert mounts["memory"] == "/dev/shm"
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                pods_of[claim["claimName"]] = pods_of.get(claim["claimName"], 0) + 1
    assert set(pods_of) <= set(claims)
    assert all(claims[claim] == ["ReadWriteMany"] for claim, pods in pods_of.items() if pods > 1)


def test_the_service_is_one_that_we_can_start() -> None:
    (manifest,) = manifests("service.yaml")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    engines = engines_of(config)
    _, (_, workers) = groups("service.yaml")
    gpus = sum(one.num_gpus * one.autoscaling.max_replicas for one in engines)
    assert gpus == workers["maxReplicas"]
    assert cluster("service.yaml")["enableInTreeAutoscaling"] is True
    mounted = {mount["mountPath"] for mount in workers["template"]["spec"]["containers"][0]["volumeMounts"]}
    for engine in engines:
        assert {"/" + str(path).split("/")[1] for path in (engine.heads, engine.bank)} <= mounted
    assert config["http_options"]["host"] == "0.0.0.0"


def test_the_services_pods_have_keys_and_are_ready_when_it_is() -> None:
    (manifest,) = manifests("service.yaml")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    port = config["http_options"]["port"]
    for is_head, group in groups("service.yaml"):
        (container,) = group["template"]["spec"]["containers"]
        (key,) = container["env"]
        assert key == {"name": VARIABLE, "valueFrom": {"secretKeyRef": {"name": "entmtp-keys", "key": VARIABLE}}}
        assert port in {one["containerPort"] for one in container["ports"]}
        probe = container["readinessProbe"]["httpGet"]
        if is_head:  # the operator deploys when the head is ready: it must not wait for what is deployed
            assert probe["port"] != port
        else:
            assert probe == {"path": "/ready", "port": port}
            assert probe["path"] in routes()


@both
def test_pods_are_asked_for_their_health_where_ray_tells_it(name: str) -> None:
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    from ray.dashboard.modules.reporter import healthz_agent

    probe = {"path": "/api/healthz", "port": DEFAULT_DASHBOARD_AGENT_LISTEN_PORT}
    assert f'"{probe["path"]}"' in Path(healthz_agent.__file__).read_text()
    for is_head, group in groups(name):
        (container,) = group["template"]["spec"]["containers"]
        assert container["livenessProbe"]["httpGet"] == probe
        assert is_head is False or container["readinessProbe"]["httpGet"] == probe


def test_the_job_is_one_that_we_have_with_options_that_it_knows() -> None:
    (manifest,) = manifests("job.yaml")
    python, script, *arguments = shlex.split(manifest["spec"]["entrypoint"])
    assert python == "python"
    assert (ROOT / Path(script).relative_to("/app")).samefile(ROOT / "jobs" / "benchmark.py")
    app = typer.Typer()
    app.command()(benchmark_command(lambda _: pytest.fail("not run")))
    with typer.main.get_command(app).make_context("benchmark", arguments) as context:
        assert str(context.params["results"]) in {
            mount["mountPath"]
            for mount in cluster("job.yaml")["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        }


def test_the_jobs_gpus_are_there_when_it_starts() -> None:
    (workers,) = cluster("job.yaml")["workerGroupSpecs"]
    assert workers["minReplicas"] == workers["maxReplicas"] > 0
    assert "enableInTreeAutoscaling" not in cluster("job.yaml")
