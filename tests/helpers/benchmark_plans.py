"""Plans of a benchmark on a saved project."""

from pathlib import Path
from typing import Any

from entmtp.evaluation.results.storage import open_store
from entmtp.evaluation.run.plan import Plan
from entmtp.evaluation.run.planning import make_plan
from entmtp.tracking.client import default_tracking_uri
from tests.helpers.saved_project import SUITES, Saved
from tests.helpers.tiny_models import STATELESS_KINDS


def plan_of(saved: Saved, folder: Path, **changes: Any) -> Plan:
    """The plan of a benchmark of the saved project, with results in ``folder``."""
    arguments: dict[str, Any] = {
        "profile": "quick",
        "suites": list(SUITES),
        "arms": [],
        "model": str(saved.model),
        "heads": [f"{kind}={saved.heads(kind)}" for kind in STATELESS_KINDS],
        "banks": saved.banks,
        "data": [f"{suite}={saved.data(suite)}" for suite in SUITES],
        "overrides": {"prompts": 2, "max_new_tokens": None, "repetitions": None},
        "results": open_store(str(folder)),
        "tracking_uri": default_tracking_uri(saved.folder),
        "device": "cpu",
        "threads": 1,
    }
    return make_plan(**(arguments | changes))
