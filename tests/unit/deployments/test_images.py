"""The Dockerfile, the compose file and the page that explains them: what they name is there, what runs has limits."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli

from deployments.http.auth import VARIABLE
from deployments.serve_local import read_config
from tests.helpers.paths import ROOT
from tests.helpers.strict_files import (
    ENTMTP,
    FOLDER,
    constraint,
    engines_of,
    extras,
    image_environment,
    image_stages,
    last_instruction,
    load,
    routes,
    serving_environment,
)

DOCKER = FOLDER / "docker"
COMPOSE = load(DOCKER / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
NODES = ("cpu", "cuda")
ONE_SHOT = "no"  # of `restart`
stages = pytest.mark.parametrize("stage", [*NODES, "mlflow"])
services = pytest.mark.parametrize("name", SERVICES)


@pytest.mark.parametrize("stage", NODES)
def test_a_nodes_image_has_the_environment_of_the_service(stage: str) -> None:
    environment = image_environment(stage)
    workdir = last_instruction(stage, "WORKDIR")
    assert serving_environment(workdir).items() <= environment.items()
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    (made,) = [rest for kind, rest in image_stages()[stage] if kind == "RUN" and "--owner=entmtp" in rest]
    assert environment["ENTMTP_CACHE"] in made.split()


@stages
def test_an_image_installs_the_tested_set(stage: str) -> None:
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", last_instruction(stage, "FROM"))
    (install,) = [rest for kind, rest in image_stages()[stage] if kind == "RUN" and rest.startswith("pip install")]
    words = shlex.split(install)
    assert words[words.index("-c") + 1] == "constraints.txt"
    for project in (word for word in words if word.startswith(".[")):
        assert set(project[2:-1].split(",")) <= extras()
    for pinned in (word for word in words if "==" in word):
        assert not re.search(rf"(?m)^{pinned.partition('==')[0]}==", (ROOT / "constraints.txt").read_text())


@stages
def test_an_image_runs_as_a_user_and_tells_its_health(stage: str) -> None:
    kinds = [kind for kind, _ in image_stages()[stage]]
    assert last_instruction(stage, "USER") == "1000"
    assert kinds.index("USER") > max(at for at, kind in enumerate(kinds) if kind == "RUN")
    (created,) = re.findall(r"useradd \S+ --uid (\d+)", " ".join(rest for _, rest in image_stages()[stage]))
    assert created == last_instruction(stage, "USER")
    (port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", last_instruction(stage, "HEALTHCHECK"))[0]
    assert port == last_instruction(stage, "EXPOSE")
    assert path == ("/health" if stage == "mlflow" else "/ready")
    assert stage == "mlflow" or path in routes()


@stages
def test_what_an_image_copies_is_there_and_not_ignored(stage: str) -> None:
    stored = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    for kind, rest in image_stages()[stage]:
        if kind == "COPY" and rest != ". .":
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists()
                assert source.split("/")[0] in stored
    assert all((ROOT / name).exists() for name in stored)
    assert {"entmtp", "deployments", "jobs"} <= stored


@pytest.mark.parametrize("stage", NODES)
def test_a_nodes_image_starts_the_service(stage: str) -> None:
    python, flag, module, option, path = re.findall(r'"([^"]+)"', last_instruction(stage, "CMD"))
    assert (python, flag, module, option) == ("python", "-m", "deployments.serve_local", "--config")
    config = read_config(ROOT / path)
    (engine,) = engines_of(config)
    assert engine.device == ("cuda" if stage == "cuda" else "cpu")
    assert config["http_options"] == {"host": "0.0.0.0", "port": int(last_instruction(stage, "EXPOSE"))}
    (application,) = config["applications"]
    assert Path(application["args"].pop("log_folder")).parts[:2] == ("/", "cache")  # the volume that is kept
    if stage == "cpu":
        assert config["applications"] == load(FOLDER / "config.cpu.yaml")["applications"]


@services
def test_a_service_is_restricted(name: str) -> None:
    service = SERVICES[name]
    known = "image build user profiles command entrypoint environment volumes ports depends_on healthcheck deploy"
    known += " restart init cap_drop cap_add security_opt network_mode shm_size"
    assert set(service) <= set(known.split())
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if "build" not in service:
        assert re.search(r":[\w.-]*\d[\w.-]*$", service["image"])
        as_root = service["user"] == "root"
        # The only one that is root may do nothing but give a folder away, and is gone afterwards.
        assert as_root == ("cap_add" in service)
        if as_root:
            assert (service["cap_add"], service["restart"], service["network_mode"]) == (["CHOWN"], ONE_SHOT, "none")


@services
def test_a_service_has_a_health_check_and_waits_for_what_it_needs(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert last_instruction(service["build"]["target"], "HEALTHCHECK")
    elif service["restart"] != ONE_SHOT:
        assert service["healthcheck"]["test"][0] == "CMD"
    for other, how in service.get("depends_on", {}).items():
        one_shot = SERVICES[other]["restart"] == ONE_SHOT
        assert how == {"condition": "service_completed_successfully" if one_shot else "service_healthy"}


@services
def test_what_a_service_is_built_from_and_keeps_is_there(name: str) -> None:
    service = SERVICES[name]
    if build := service.get("build"):
        assert (DOCKER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).samefile(DOCKER / "Dockerfile")
        target = build["target"]
        versions = {"mlflow": f"entmtp-mlflow:{constraint('mlflow')}", "cpu": f"entmtp:{ENTMTP}-cpu"}
        assert service["image"] == versions[target]
        assert {port.rpartition(":")[2] for port in service["ports"]} == {last_instruction(target, "EXPOSE")}
    for volume in service.get("volumes", []):
        assert volume.partition(":")[0] in COMPOSE["volumes"]


def test_no_secret_is_written_down() -> None:
    example = dict(
        line.split("=", 1) for line in (DOCKER / ".env.example").read_text().splitlines() if not line.startswith("#")
    )
    assert set(example.values()) == {""}
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    assert used == set(example)
    assert VARIABLE in example
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|USER$", variable) and variable != "POSTGRES_USER":
                assert value.startswith("${")
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    assert "**/.env" in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()


def commands() -> list[str]:
    """The page's commands."""
    blocks = re.findall(r"(?ms)^```\n(.*?)^```", PAGE)
    return [line for block in blocks for line in block.splitlines() if line]


def test_the_page_says_which_commands_need_a_cluster() -> None:
    for line in commands():
        reaches_one = re.match(r"(ray|serve|kubectl)\b", line) is not None
        assert reaches_one == ("# needs a cluster" in line), line


def test_the_page_names_files_that_are_there() -> None:
    named = set(re.findall(r"(?<![\w/.-])((?:deployments|jobs|docs)/[\w./-]+\.\w+|cluster\.yaml)", PAGE))
    named.discard("deployments/docker/.env")  # the user makes it
    assert {"cluster.yaml", "deployments/kuberay/service.yaml", "deployments/docker/compose.yaml"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []
    for path in [ROOT / "cluster.yaml", *(FOLDER / "clusters").iterdir(), *(FOLDER / "kuberay").iterdir()]:
        assert path.name in PAGE, path


def test_the_page_gives_options_that_are_known() -> None:
    for line in commands():
        words = shlex.split(line, comments=True)
        options = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--"}
        if words[0] in ("ray", "serve") and words[1] != "job":
            cli = ray_cli if words[0] == "ray" else serve_cli
            assert options <= {name for parameter in cli.commands[words[1]].params for name in parameter.opts}, line
        if "--target" in options:
            stage = words[words.index("--target") + 1]
            assert words[words.index("-t") + 1] == f"entmtp:{ENTMTP}-{stage}"
            assert Path(words[words.index("-f") + 1]) == (DOCKER / "Dockerfile").relative_to(ROOT)
            assert stage in image_stages()
        if "--profile" in options and "compose" in words:
            assert [words[words.index("--profile") + 1]] == SERVICES["serve"]["profiles"]
