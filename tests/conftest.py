"""Fixtures that several test files share."""

import gc
import os
import tempfile
from pathlib import Path

# Several processes run tests at once, and two threads on layers of width 32 only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Commands and services take all cores, which another process uses too: threads that wait for each other must not spin.
os.environ["OMP_WAIT_POLICY"] = "passive"

# Without a GPU the kernels for one run in Triton's interpreter, which has to be chosen before Triton is imported.
if not Path("/proc/driver/nvidia/version").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tests must not depend on a network, nor wait for one: only what lies on this machine is asked for.
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine is no fault of the code: no property is judged by its time.
settings.register_profile("ci", deadline=None, max_examples=100)
settings.register_profile("dev", deadline=None, max_examples=10)
settings.load_profile("ci")


def pytest_sessionstart() -> None:
    """Collect no garbage among what is imported, which stays: a pass over it takes a third of a second."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, of what tests make alone."""
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a cache of its own: the user's model and kernels, but no step costs."""
    if hasattr(config, "workerinput"):
        return  # inherits it from the process that started it
    from entmtp.persistent_paths import cache_folder

    usual, own = cache_folder(), tempfile.TemporaryDirectory(prefix="entmtp-cache-")
    config.add_cleanup(own.cleanup)
    for name in ("models", "kernels"):  # made once, and the same for every run
        (usual / name).mkdir(parents=True, exist_ok=True)
        (Path(own.name) / name).symlink_to(usual / name)
    os.environ["ENTMTP_CACHE"] = own.name


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process, as they share fixtures; all files with Ray clusters share one process.

    What takes longest comes first, so that both processes end together: Ray's files, then others of whole programs.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    group = item.get_closest_marker("xdist_group")
    assert group is not None
    if group.args == ("ray",):
        return 0
    return next((rank for rank, kind in enumerate(("integration", "e2e"), 1) if f"tests/{kind}/" in item.nodeid), 3)


@pytest.fixture(autouse=True)
def _alike() -> Iterator[None]:
    """Seed, and number of threads: a benchmark sets as many as there are cores, also for all later tests."""
    import torch

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(threads)  # also for the fixtures of the next module


@pytest.fixture(scope="session")
def bundled() -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The bundled model with plain float32 weights, to compare with, and its tokenizer.

    Loaded once for the whole run; treat both as read-only.
    """
    from entmtp.models.kernels.block_weight import dequantize_layers
    from entmtp.models.loading.load import load_model

    model, tokenizer = load_model("bundled")
    dequantize_layers(model)
    return model, tokenizer


@pytest.fixture(scope="session")
def step_costs() -> None:
    """Fixed step costs of the bundled model in the run's cache: its methods measure nothing, and choose trees."""
    from tests.helpers.step_costs import write_step_costs

    write_step_costs()
