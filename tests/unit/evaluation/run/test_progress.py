from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from entmtp.evaluation.run.progress import Progress
from entmtp.evaluation.run.units import Unit
from entmtp.evaluation.run.work_queue import SetAside, SettledUnit

UNITS = [Unit(f"{suite}-{number}", number, suite, "file", ()) for suite in ("gsm8k", "litbench") for number in range(3)]
LOST = SetAside("gsm8k", "gsm8k/0", 3, "it died")


@pytest.fixture
def log() -> StringIO:
    return StringIO()


@pytest.fixture
def progress(log: StringIO) -> Iterator[Progress]:
    """Of six units, the first of which was done before; three more are done now."""
    doing = [("10.0.0.7", "gsm8k-1, 4 s"), ("10.0.0.8", "loads the model, 9 s")]
    with Progress(Console(file=log, width=100), UNITS, UNITS[1:], lambda: doing) as made:
        for unit in UNITS[1:4]:
            made.settled(SettledUnit(unit, set_aside=[LOST] * (unit is UNITS[1]), busy_seconds=30.0))
        yield made


def test_a_line_says_how_far_it_is(progress: Progress, log: StringIO) -> None:
    assert progress.line().startswith("4 of 6 units, 2 workers, 1 prompts set aside, 0 s gone, about 30 s left")
    assert log.getvalue() == "", "nothing is printed within the first minute"


def test_the_last_line_ends_a_log(log: StringIO) -> None:
    with Progress(Console(file=log, width=100), UNITS, [], list):
        pass
    assert log.getvalue() == "6 of 6 units, 0 s gone\n"


def test_the_table_has_every_suite_and_worker(progress: Progress) -> None:
    shown = Console(file=StringIO(), width=100)
    shown.print(progress.table())
    assert isinstance(shown.file, StringIO)
    rows = [line.split() for line in shown.file.getvalue().splitlines() if line.strip()]
    assert ["gsm8k", "3", "3", "1"] in rows
    assert ["litbench", "1", "3"] in rows
    assert ["10.0.0.8", "loads", "the", "model,", "9", "s"] in rows
