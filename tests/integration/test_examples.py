"""Every example runs as it stands, on the bundled model."""

import runpy

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.usefixtures("loads_once")

SCRIPTS = ("generate.py", "stream.py", "compare_methods.py", "own_policy.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_runs(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / script))
    written = capsys.readouterr().out
    assert "per step" in written
    if script == "compare_methods.py":
        assert written.splitlines()[-1] == "the same tokens"


def test_every_example_is_run() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {*SCRIPTS, "chat_client.py"}
