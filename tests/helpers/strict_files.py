"""Strict reading of the files of `deployments`: what Ray, KubeRay or Docker would drop or misread without a word."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

import entmtp
from deployments.serve_local import node_environment
from deployments.settings import AppArgs, EngineArgs, EngineChanges
from tests.helpers.paths import ROOT

FOLDER = ROOT / "deployments"
ENTMTP = entmtp.__version__


def load(path: Path) -> Any:
    """The YAML document of a file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def constraint(package: str) -> str:
    """The version that constraints.txt names."""
    (version,) = re.findall(rf"(?m)^{package}==(\S+)$", (ROOT / "constraints.txt").read_text())
    return str(version)


def engines_of(serve_config: Any) -> list[EngineArgs]:
    """The engines of a Serve config in which Serve and we understand every word."""
    ServeDeploySchema.model_validate(serve_config, extra="forbid")
    engines: list[EngineArgs] = []
    for application in serve_config["applications"]:
        module, _, function = application["import_path"].partition(":")
        assert f"def {function}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()
        args = AppArgs.parse(**application["args"])
        engines += args.engines
        for deployment in application.get("deployments", []):
            assert deployment["name"] in {one.name for one in args.engines}
            EngineChanges.parse(**deployment["user_config"])
    return engines


def serving_environment(checkout: str) -> dict[str, str]:
    """Environment that Ray's processes need on a node with this checkout at `checkout`."""
    return node_environment({}) | {"PYTHONPATH": checkout}


def routes() -> set[str]:
    """The paths that the service answers GET requests on."""
    return set(re.findall(r'@api\.get\(\s*"([^"]+)"', (FOLDER / "http" / "routes.py").read_text()))


def image_stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's instructions by stage, each stage beginning with those of the one that it is built from."""
    text = (FOLDER / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, rest = line.strip().split(maxsplit=1)
        if instruction == "FROM":
            source, word, name = rest.split()
            assert word == "AS"
            stages[name] = list(stages[source]) if source in stages else [("FROM", source)]
        else:
            stages[name].append((instruction, " ".join(rest.split())))
    return stages


def last_instruction(stage: str, instruction: str) -> str:
    """The last of a stage's instructions of this kind: the one that counts."""
    return [rest for kind, rest in image_stages()[stage] if kind == instruction][-1]


def image_environment(stage: str) -> dict[str, str]:
    """The environment that an image gives."""
    words = [word for instruction, rest in image_stages()[stage] if instruction == "ENV" for word in rest.split()]
    return dict(word.split("=", 1) for word in words)


def extras() -> set[str]:
    """The optional dependencies that pyproject.toml knows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])
