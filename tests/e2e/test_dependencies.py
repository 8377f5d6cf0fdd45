"""Imports and declarations agree: the core runs on its own dependencies, and extras say what they add."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from entmtp.cli_errors import EXTRA_OF, plain_errors
from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BENCHMARK = {"entmtp.evaluation.run.local_executor"}
"""Modules that the command line imports for `entmtp benchmark` alone, which has an extra."""

IMPLIED = {
    "starlette": "fastapi is made of it",
    "triton": "PyTorch's builds for CUDA bring it along, and only their kernels use it",
    "pydantic_core": "the errors of pydantic",
    "opentelemetry": "a namespace of several packages, of which `serve` and `tracing` name one each",
    "sqlalchemy": "the errors of mlflow's own database",
    "pandas": "the data sets of mlflow",
}
"""Packages that are imported and not declared, each with the reason."""

BLOCKED_RUN = """
import importlib, sys
from importlib.machinery import PathFinder
blocked, modules = set({blocked!r}), {modules!r}
class Blind(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Blind
for module in modules:
    importlib.import_module(module)
"""


def distributions(texts: Iterable[str]) -> set[str]:
    """Everything that requirements bring, and that this requires, by normalised name."""
    waiting = [(Requirement(text), "") for text in texts]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            name = normalised(requirement.name)
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in requires(name)]
    return {name for name, _ in seen}


@cache
def requires(name: str) -> list[str]:
    """The requirements of an installed distribution; none of one that this platform does without."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def owners() -> Mapping[str, Sequence[str]]:
    """Distributions that bring each package that can be imported; reading all of them takes a second."""
    return metadata.packages_distributions()


@cache
def beyond(*extras: str) -> set[str]:
    """Names by which packages are imported that neither the core's dependencies nor these extras bring."""
    texts = PROJECT["dependencies"] + [text for extra in extras for text in declared(extra)]
    brought = distributions(texts) | {"entmtp", "pip", "setuptools"}
    return {module for module, names in owners().items() if not brought & {normalised(name) for name in names}}


def imported_by_the_command_line() -> set[str]:
    tree = ast.parse((ROOT / "entmtp" / "cli.py").read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name for name in found if name.startswith("entmtp.")}


def run_without(
    blocked: Iterable[str], modules: Iterable[str] = (), then: str = ""
) -> subprocess.CompletedProcess[str]:
    code = BLOCKED_RUN.format(blocked=sorted(blocked), modules=sorted(modules)) + then
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_command_but_the_benchmark_imports_with_the_core_alone() -> None:
    blocked = beyond()
    assert {"ray", "mlflow", "matplotlib", "datasets", "aiohttp", "fastapi"} <= blocked
    modules = (imported_by_the_command_line() - BENCHMARK) | {"entmtp.llm", "entmtp.decoding.async_engine"}
    assert {"entmtp.loading", "entmtp.training.train_heads", "entmtp.calibration.replay"} <= modules
    done = run_without(blocked, modules)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_service_checks_its_configuration_without_heavy_libraries() -> None:
    """They take seconds to import, for which a mistake, such as a taken port, would wait."""
    then = "from deployments.serve_local import CONFIG, read_config; read_config(CONFIG)"
    done = run_without(["torch", "transformers", "scipy", "mlflow", "ray.serve"], then=then)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks() -> None:
    assert "No module named 'matplotlib'" in run_without(["matplotlib"], ["entmtp.evaluation.report.plots"]).stderr


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"entmtp", "deployments", "jobs", "benchmarks", "tests"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("entmtp", ["benchmark"]), ("jobs", ["benchmark"]), ("deployments", ["serve", "tracing"])],
)
def test_every_package_that_is_imported_is_declared(folder: str, extras: list[str]) -> None:
    texts = PROJECT["dependencies"] + [text for extra in extras for text in declared(extra)]
    names = {normalised(Requirement(text).name) for text in texts}
    lacking = {
        f"{path.relative_to(ROOT)}: {package}"
        for path in (ROOT / folder).rglob("*.py")
        for package in imported(path) - IMPLIED.keys()
        if not names & {normalised(name) for name in owners().get(package, [package])}
    }
    assert not lacking


def declared(extra: str) -> list[str]:
    """An extra's requirements, those of the project's own extras that it takes in as well."""
    texts = PROJECT["optional-dependencies"][extra]
    own = [Requirement(text) for text in texts if text.startswith("entmtp[")]
    return [text for text in texts if not text.startswith("entmtp[")] + [
        text for requirement in own for name in requirement.extras for text in declared(name)
    ]


def test_a_package_that_an_extra_brings_is_missed_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, plain_errors("benchmark"):
        raise ModuleNotFoundError("No module named 'matplotlib.axes'", name="matplotlib.axes")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "matplotlib" in told
    assert "entmtp[benchmark]" in told


SERVING = "import sys; from entmtp.cli import app; app(['serve', '--config=nowhere.yaml'])"
LOADING = """
import runpy, sys
sys.argv = ["jobs/load.py", "--endpoint=a=http://127.0.0.1:9/v1", "--model=m", "--users=1", "--results=/dev/null/run"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("has", "program", "command", "lacks"),
    [
        ([], SERVING, "serve", "serve"),
        (["benchmark"], SERVING, "serve", "serve"),
        ([], LOADING, "load", "benchmark"),
        (["ray"], LOADING, "load", "benchmark"),
    ],
)
def test_a_command_without_its_extra_says_so_in_one_line(
    has: list[str], program: str, command: str, lacks: str
) -> None:
    done = run_without(beyond(*has), then=program)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"entmtp {command}: \w+ is not installed; pip install 'entmtp\[{lacks}\]'\n", done.stderr)


def test_a_module_that_no_extra_brings_is_a_fault_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError), plain_errors("benchmark"):
        raise ModuleNotFoundError("No module named 'entmtp.absent'", name="entmtp.absent")


@pytest.mark.parametrize(("package", "extra"), EXTRA_OF.items())
def test_the_extra_that_is_named_brings_the_package(package: str, extra: str) -> None:
    names = {normalised(Requirement(text).name) for text in declared(extra)}
    assert names & {normalised(name) for name in owners()[package]}
