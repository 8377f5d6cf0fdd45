"""The service's settings, and the config files that come with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.engines.catalogue import Catalogue
from deployments.protocol.errors import ApiError
from deployments.protocol.schema import Speculation
from deployments.serve_local import read_config
from deployments.settings import AppArgs, EngineArgs
from entmtp.errors import EntMTPError
from tests.helpers.paths import ROOT
from tests.helpers.strict_files import engines_of

FOLDER = ROOT / "deployments"
ENGINE = {"name": "a", "model_name": "m"}
OTHER = ENGINE | {"name": "b", "model": "other"}


@pytest.mark.parametrize("name", ["config.yaml", "config.cpu.yaml"])
def test_the_config_files_say_what_serve_understands(name: str) -> None:
    assert engines_of(read_config(FOLDER / name))


@pytest.mark.parametrize(
    "change",
    [
        {"proxy_locations": "HeadOnly"},
        {"http_options": {"prot": 8000}},
        {"applications": [{"import_path": "deployments.app:build", "args": {}, "route": "/"}]},
        {"applications": [{"import_path": "a.b:c", "args": {}, "deployments": [{"name": "d", "replicas": 2}]}]},
    ],
)
def test_a_word_that_serve_would_drop_is_found(change: dict[str, Any]) -> None:
    config = {"applications": []} | change
    ServeDeploySchema.model_validate(config)
    with pytest.raises(ValidationError, match=r"^1 validation error (?s:.*) Extra inputs are not permitted"):
        engines_of(config)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({"engines": []}, "engines"),
        ({"engines": [ENGINE | {"method": "entmtp-dynamo"}]}, "entmtp-dynamo"),
        ({"engines": [ENGINE | {"task": "chess"}]}, "chess"),
        ({"engines": [ENGINE], "ingres_replicas": 2}, "ingres_replicas"),
        ({"engines": [ENGINE | {"name": "a/b"}]}, "engines.0.name"),
        ({"engines": [ENGINE, ENGINE]}, "engines"),
        ({"engines": [ENGINE, ENGINE | {"name": "b"}]}, "method"),
        (
            {"engines": [ENGINE, ENGINE | {"name": "b", "model": "other", "method": "hydra", "heads": "h"}]},
            "model_name",
        ),
        ({"engines": [OTHER]}, "heads: none are shipped for model 'other'"),
        ({"engines": [ENGINE | {"method": "dflash"}]}, "heads: no dflash ones are shipped and method 'dflash' needs"),
        ({"engines": [ENGINE | {"device": "cuda"}]}, "num_gpus"),
        ({"engines": [ENGINE | {"device": "balanced", "num_gpus": 1}]}, "num_gpus"),
        ({"engines": [ENGINE | {"autoscaling": {"min_replicas": 3, "max_replicas": 2}}]}, "max_replicas"),
        ({"engines": [ENGINE | {"engine": {"slots": 0}}]}, "engines.0.engine.slots"),
    ],
)
def test_wrong_settings_are_named(args: dict[str, Any], name: str) -> None:
    with pytest.raises(EntMTPError, match=name.replace(".", r"\.")):
        AppArgs.parse(**args)


@pytest.mark.parametrize("name", ["m", "org/m", "Qwen/Qwen2.5-7B-Instruct", "team/org/m", "llama3.2:1b"])
def test_a_model_may_be_named_as_on_a_hub(name: str) -> None:
    assert AppArgs.parse(engines=[ENGINE | {"model_name": name}]).engines[0].model_name == name


@pytest.mark.parametrize("name", ["", "/m", "m/", "a//b", "a/../b", "a b", "a/b/c/d", "m?x", "é"])
def test_a_model_has_no_name_that_no_path_can_hold(name: str) -> None:
    with pytest.raises(EntMTPError, match=r"engines\.0\.model_name"):
        AppArgs.parse(engines=[ENGINE | {"model_name": name}])


def test_origins_are_addresses_without_paths() -> None:
    assert AppArgs.parse(engines=[ENGINE]).cors_origins == []
    for origin in ("*", "https://chat.example", "http://localhost:3000"):
        assert AppArgs.parse(engines=[ENGINE], cors_origins=[origin]).cors_origins == [origin]
    for origin in ("chat.example", "https://chat.example/", "https://*.example", "null", ""):
        with pytest.raises(EntMTPError, match=r"cors_origins\.0"):
            AppArgs.parse(engines=[ENGINE], cors_origins=[origin])


def test_what_a_validator_says_names_its_field_once() -> None:
    with pytest.raises(EntMTPError) as refusal:
        AppArgs.parse(engines=[ENGINE | {"method": "entmtp-dynamo"}])
    assert str(refusal.value).startswith("engines.0.method: 'entmtp-dynamo' is unknown; choose one of ")


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in ("[", "a: 1", "applications: [1]", yaml.safe_dump({"applications": [{"args": {"engines": []}}]})):
        path.write_text(text)
        with pytest.raises(EntMTPError, match=r"config|engines"):
            read_config(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": 0}, "http_options.port: 0 is not accepted"),
        ({"port": "8000"}, "http_options.port: '8000' is not accepted"),
        ({"port": 70000}, "http_options.port: 70000 is not accepted"),
        ({"port": True}, "http_options.port: True is not accepted"),
        ({"host": ""}, "http_options.host: '' is not accepted"),
        ({"host": 127}, "http_options.host: 127 is not accepted"),
        ("8000", "is not a Serve config"),
    ],
)
def test_where_a_service_listens_is_checked_before_ray_starts(options: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = yaml.safe_load((FOLDER / "config.cpu.yaml").read_text())
    path.write_text(yaml.safe_dump(config | {"http_options": options}))
    with pytest.raises(EntMTPError, match=re.escape(said)):
        read_config(path)


def test_a_service_without_an_application_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("applications: []")
    with pytest.raises(EntMTPError, match="names no application"):
        read_config(path)


def test_a_request_finds_its_engine() -> None:
    engines = [
        {"name": "d", "model_name": "m", "method": "entmtp-dynamic"},
        {"name": "h", "model_name": "m", "method": "hydra"},
        {"name": "g", "model_name": "m", "method": "hydra", "task": "gsm8k"},
        {"name": "o", "model_name": "other", "method": "medusa"},
    ]
    catalogue = Catalogue(AppArgs.parse(engines=engines).engines)
    assert catalogue.find("m", None).name == "d"
    assert catalogue.find("m", Speculation(method="hydra")).name == "h"
    assert catalogue.find("m", Speculation(policy="published")).name == "h"
    assert catalogue.find("m", Speculation(task="gsm8k")).name == "g"
    assert catalogue.find("other", Speculation(max_nodes=3)).name == "o"
    for model, wanted, status in (
        ("none", None, 404),
        ("m", Speculation(method="medusa"), 400),
        ("m", Speculation(method="entmtp-dynamic", task="gsm8k"), 400),
    ):
        with pytest.raises(ApiError) as refusal:
            catalogue.find(model, wanted)
        assert refusal.value.status == status
        assert "choose" in refusal.value.message


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Every name in the Grafana dashboard is one that a replica exports."""
    from deployments.engines import metrics

    source = Path(metrics.__file__).read_text()
    dashboard = (FOLDER / "grafana.json").read_text()
    requested = set(re.findall(r"ray_entmtp_([a-z0-9_]+?)(?:_total|_bucket)?(?=[{\s,)\]\"])", dashboard))
    assert len(requested) > 10
    for name in requested:
        assert f'"{name}"' in source, name


@pytest.mark.parametrize(("method", "policy"), [("eagle3", "eagle2"), ("dflash", "chain")])
def test_an_engine_takes_heads_of_a_family_of_which_none_are_shipped(method: str, policy: str) -> None:
    assert EngineArgs.parse(**ENGINE, method=method, heads="folder").policy == policy
