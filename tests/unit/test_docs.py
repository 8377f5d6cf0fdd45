"""What the pages say can be typed, opened and found."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from entmtp.cli import app
from entmtp.evaluation.run.arms import quick_arms
from entmtp.settings import PROFILES, QUICK
from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {"performance.md", "study.md"}
ELSEWHERE = re.compile(r"\bneeds an? (GPU|cluster)\b", re.IGNORECASE)
"""What a page says before commands that can't run on every machine."""

BEYOND_THIS_MACHINE = re.compile(r"ray job submit|ray up|kubectl|serve deploy|--device cuda")
OF_OTHERS = {"sed", "pip", "curl", "ray", "serve", "kubectl", "docker", "export", "cd", "git", "helm", "cp"}


class Command(NamedTuple):
    """``told`` is the text before its block, back to the heading or the block before."""

    page: str
    line: str
    told: str


def _commands() -> Iterator[Command]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.name in GENERATED:
            continue
        for block in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if block[1]:
                continue
            before = text[: block.start()]
            told = before[max(before.rfind("\n#"), before.rfind("\n```\n"), 0) :]
            joined = block[2].replace("\\\n", " ")
            for line in filter(None, map(str.strip, joined.splitlines())):
                yield Command(page.name, line, told)


COMMANDS = list(_commands())


def _named(command: Command) -> str:
    return f"{command.page}: {command.line[:60]}"


@pytest.mark.parametrize("command", COMMANDS, ids=_named)
def test_a_command_of_the_project_takes_what_a_page_gives_it(command: Command) -> None:
    words = shlex.split(command.line, comments=True)
    while words and "=" in words[0]:
        words = words[1:]
    if "python" in words:
        words = words[words.index("python") + 1 :]
    match words:
        case ["entmtp", *arguments]:
            _parse(typer.main.get_command(app), arguments)
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["-m", "deployments.http.auth", _, ">>", _]:
            pass
        case ["-m", module, *arguments]:
            _parse(_alone(importlib.import_module(module).main), arguments)
        case ["jobs/local.py", "jobs/benchmark.py", *arguments] | ["jobs/benchmark.py", *arguments]:
            _parse(typer.main.get_command(app), ["benchmark", *arguments])
        case [job, *arguments] if job.startswith("jobs/"):
            _parse(_alone(importlib.import_module(job[: -len(".py")].replace("/", ".")).main), arguments)
        case [other, *_]:
            assert other in OF_OTHERS, f"{other} is no command that the pages may assume"


@pytest.mark.parametrize("command", COMMANDS, ids=_named)
def test_what_needs_more_than_this_machine_says_so(command: Command) -> None:
    if BEYOND_THIS_MACHINE.search(command.line):
        assert ELSEWHERE.search(command.told + command.line), "say 'Needs a GPU' or 'Needs a cluster' before it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_figures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    if page.name in GENERATED:
        return
    for name in re.findall(
        r"`((?:entmtp|deployments|jobs|benchmarks|tests)/[\w./-]+)`", page.read_text(encoding="utf-8")
    ):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_the_architecture_lists_packages_from_the_bottom_up() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = [re.split(r" \| ", floor) for floor in reversed(contracts[0]["layers"])]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `entmtp/(\w+)", page, re.MULTILINE)
    heights = [next(height for height, floor in enumerate(floors) if name in floor) for name in named]
    assert heights == sorted(heights)
    packages = {path.parent.name for path in (ROOT / "entmtp").glob("*/__init__.py")}
    assert packages <= set(named)


def _alone(main: Any) -> Any:
    program = typer.Typer()
    program.command()(main)
    return typer.main.get_command(program)


def _parse(command: Any, arguments: list[str]) -> None:
    """Raises a usage error where the command would."""
    context = command.make_context("it", list(arguments))
    if hasattr(command, "resolve_command"):
        _, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        _parse(chosen, rest)


def test_the_table_of_profiles_is_that_of_the_settings() -> None:
    page = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    rows = {cells[0].strip("`"): cells[1:] for cells in map(_cells, page.splitlines()) if cells}
    for name, settings in PROFILES.items():
        numbers = {cell.replace(",", "") for cell in rows[name]}
        assert str(settings.max_new_tokens) in numbers, name
        assert settings.repetitions == 3
        assert str(settings.prompts) in (numbers if settings.temperature == 0 else page)
    assert re.findall(r"`([\w-]+)`", rows[QUICK][2]) == list(quick_arms())


def _cells(line: str) -> list[str]:
    """A Markdown table's row, cell by cell; empty for another line."""
    return [cell.strip() for cell in line.strip("| ").split("|")] if line.startswith("|") else []
