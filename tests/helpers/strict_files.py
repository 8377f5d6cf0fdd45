"""Strict reading of the files of `deployments`: what Ray, KubeRay or Docker would drop or misread without a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
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


def unknown_keys(model: type[BaseModel], given: Any, where: str = "") -> Iterator[str]:
    """Keys that a pydantic model has no field for, at any depth of models inside it."""
    if isinstance(given, list):
        for number, one in enumerate(given):
            yield from unknown_keys(model, one, f"{where}[{number}]")
    elif isinstance(given, Mapping):
        for key, value in given.items():
            if key not in model.model_fields:
                yield f"{where}.{key}"
            elif inner := _model_in(model.model_fields[key].annotation):
                yield from unknown_keys(inner, value, f"{where}.{key}")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _model_in(one))), None)


def engines_of(serve_config: Any) -> list[EngineArgs]:
    """The engines of a Serve config in which Serve and we understand every word."""
    ServeDeploySchema.model_validate(serve_config)
    assert list(unknown_keys(ServeDeploySchema, serve_config)) == []
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


def image_environment(stage: str) -> dict[str, str]:
    """The environment that an image gives."""
    words = [word for instruction, rest in image_stages()[stage] if instruction == "ENV" for word in rest.split()]
    return dict(word.split("=", 1) for word in words)


def extras() -> set[str]:
    """The optional dependencies that pyproject.toml knows."""
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[project")[0]
    return set(re.findall(r"(?m)^(\w+) = \[", section))
