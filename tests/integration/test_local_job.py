"""A small job through a real local Ray cluster: `ray job submit`, upload, log, exit code, and nothing left running."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from entmtp.errors import EntMTPError
from entmtp.persistent_paths import check_persistent_path
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.xdist_group("ray")

JOB = """
import json, os, sys
from pathlib import Path
import entmtp, ray
ray.init()
@ray.remote
def doubled(number):
    return 2 * number
folder = Path(sys.argv[sys.argv.index("--results") + 1])
folder.mkdir()
seen = {"here": sorted(os.listdir(".")), "entmtp": entmtp.__file__, "python": sys.executable, "folder": os.getcwd()}
(folder / "seen.json").write_text(json.dumps(seen))
print("the answer is", ray.get(doubled.remote(21)))
sys.exit("--fail" in sys.argv)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "local.py"), "jobs/small.py", *arguments]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(command, cwd=folder, env=quiet, capture_output=True, text=True, timeout=300, check=False)


def lay_out_checkout(folder: Path) -> None:
    """A checkout's look: sources to upload, and things that must stay behind."""
    for name in (".gitignore", ".rayignore", "entmtp/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in (".venv", "mlruns", "build", ".git"):
        (folder / name).mkdir()
        (folder / name / "big").write_text("must not travel")
    (folder / "jobs").mkdir()
    (folder / "jobs" / "small.py").write_text(JOB)


def test_a_job_runs_in_an_upload_writes_here_and_its_failure_is_ours(tmp_path: Path) -> None:
    lay_out_checkout(tmp_path)
    done = run(tmp_path, "--fail")
    assert "the answer is 42" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
    seen = json.loads((tmp_path / "results" / "seen.json").read_text())
    assert not {".venv", "mlruns", "build", ".git", "results"} & set(seen["here"])
    assert {"entmtp", "jobs"} <= set(seen["here"])
    assert not Path(seen["entmtp"]).is_relative_to(ROOT)
    assert seen["python"] == sys.executable
    with pytest.raises(EntMTPError, match="would lie in the temporary copy"):
        check_persistent_path("results", Path(seen["folder"]) / "results")
    check_persistent_path("results", tmp_path / "results")
    port = re.search(r"local Ray cluster \(http://127\.0\.0\.1:(\d+)\)", done.stdout)
    assert port is not None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port[1]))) != 0
