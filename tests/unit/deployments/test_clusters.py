"""The files of `ray up`: Ray takes them, and their nodes get what the service and the jobs need."""

from __future__ import annotations

import copy
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray._private.label_utils import validate_node_labels
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

from tests.helpers.paths import ROOT
from tests.helpers.strict_files import FOLDER, constraint, extras, load, serving_environment

AWS, GCP = ROOT / "cluster.yaml", FOLDER / "clusters" / "gcp.yaml"
files = pytest.mark.parametrize("path", [AWS, GCP], ids=["aws", "gcp"])
Config = dict[str, Any]


def check(given: Config) -> None:
    validate_config(prepare_config(copy.deepcopy(given)))


@files
def test_ray_accepts_it(path: Path) -> None:
    check(load(path))


def worker(given: Config) -> Config:
    return dict(given["available_node_types"]["gpu-worker"])


def wrong(change: Callable[[Config], object]) -> Callable[[Config], Config]:
    def changed(given: Config) -> Config:
        copied = copy.deepcopy(given)
        change(copied)
        return copied

    return changed


@files
@pytest.mark.parametrize(
    "change",
    [
        wrong(lambda given: given.update(max_worker=3)),
        wrong(lambda given: given["docker"].update(images="x")),
        wrong(lambda given: given["docker"].pop("container_name")),
        wrong(lambda given: given["available_node_types"]["gpu-worker"].update(min_worker=0)),
        wrong(lambda given: given["available_node_types"]["gpu-worker"].update(min_workers=9)),
        wrong(lambda given: given["available_node_types"]["gpu-worker"]["resources"].update(GPU="1")),
        wrong(lambda given: given.update(head_node_type="none")),
    ],
)
def test_ray_would_tell_mistakes(path: Path, change: Callable[[Config], Config]) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - asserts, ValueError and jsonschema's own
        check(change(load(path)))


@files
def test_the_head_computes_nothing_and_gpus_come_when_asked_for(path: Path) -> None:
    given = load(path)
    types = given["available_node_types"]
    assert types[given["head_node_type"]]["resources"] == {"CPU": 0}
    gpu = worker(given)
    assert gpu["resources"]["GPU"] >= 1
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, given["max_workers"])
    assert gpu["labels"]
    validate_node_labels(gpu["labels"])


@files
def test_nodes_have_the_tested_ray_and_this_checkout(path: Path) -> None:
    given = load(path)
    for image in (given["docker"][key] for key in ("image", "head_image", "worker_image")):
        assert re.fullmatch(rf"rayproject/ray:{re.escape(constraint('ray'))}-py311-(cpu|gpu)", image)
    assert given["docker"]["worker_image"].endswith("-gpu")
    assert given["file_mounts"] == {"~/entmtp": "."}
    install, prepare = (shlex.split(line) for line in given["setup_commands"])
    assert install[:4] == ["pip", "install", "-c", "~/entmtp/constraints.txt"]
    match = re.fullmatch(r"~/entmtp\[(.+)\]", install[-1])
    assert match is not None
    assert set(match[1].split(",")) <= extras()
    imported = re.match(r"from (\S+) import (\w+); \2\(\)$", prepare[-1])
    assert imported is not None
    assert callable(getattr(importlib.import_module(imported[1]), imported[2]))


@files
def test_nodes_have_the_environment_of_the_service(path: Path) -> None:
    options = [option.split(maxsplit=1) for option in load(path)["docker"]["run_options"]]
    environment = dict(value.split("=", 1) for name, value in options if name == "--env")
    assert environment.pop("RAY_USAGE_STATS_ENABLED") == "0"
    assert environment == serving_environment("/home/ray/entmtp")


@files
def test_ray_is_started_with_flags_that_it_knows(path: Path) -> None:
    known = {name for parameter in cli.commands["start"].params for name in parameter.opts}
    given = load(path)
    for line in (given["head_start_ray_commands"][-1], given["worker_start_ray_commands"][-1]):
        _, started = line.split("; ")
        words = shlex.split(started)
        assert words[:2] == ["ray", "start"]
        assert {word.partition("=")[0] for word in words[2:]} <= known
    assert "--dashboard-host=127.0.0.1" in given["head_start_ray_commands"][-1]


def test_the_two_differ_in_the_machines_alone() -> None:
    aws, gcp = load(AWS), load(GCP)
    differing = {key for key in aws | gcp if aws.get(key) != gcp.get(key)}
    assert differing == {"provider", "available_node_types", "initialization_commands"}


@pytest.mark.parametrize(
    ("path", "placeholder"), [(AWS, "AMI-OF-YOUR-REGION"), (GCP, "PROJECT-OF-YOURS")], ids=["aws", "gcp"]
)
def test_what_must_be_filled_in_is_what_the_command_fills_in(path: Path, placeholder: str) -> None:
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"s/{placeholder}/" in line for line in comments)
    given = load(path)
    everywhere = given["provider"].get("project_id")
    machines = [one["node_config"] for one in given["available_node_types"].values()]
    assert {machine.get("ImageId", everywhere) for machine in machines} == {placeholder}
