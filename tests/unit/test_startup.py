"""Imports of a start: a model in a GGUF file runs on a CPU without transformers' models and what they bring along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from entmtp.models.kernels import compiled
from entmtp.models.loading.bundled import bundled_model
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.skipif(compiled.unsupported_reason() is not None, reason="no C++ compiler")

UNNEEDED = (
    "transformers.modeling_utils",
    "transformers.configuration_utils",
    "transformers.cache_utils",
    "transformers.generation",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "sympy",
    "scipy",
    "gguf",
    "llguidance",
    "mistral_common",
    "pyarrow",
)
CODE = f"""
import sys
from entmtp import LLM, EngineSettings, SamplingParams
llm = LLM(sys.argv[1], policy=sys.argv[2], settings=EngineSettings.for_one(64), say=lambda text: None)
tokens = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=2))[0].tokens
print(len(tokens), [name for name in {UNNEEDED} if name in sys.modules])
"""


def generate(model: str, method: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, model, method],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def compared(step_costs: None) -> None:
    """The kernels were compared with transformers' model before: that is remembered in the run's cache."""
    generate("bundled", "autoregressive")


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize("method", ["autoregressive", "medusa", "entmtp-dynamic"])
def test_generating_imports_no_models_of_transformers(method: str) -> None:
    assert generate("bundled", method) == "2 []"


def test_naming_a_gguf_file_imports_as_little(tmp_path: Path) -> None:
    from tests.helpers.gguf_files import write_model

    # Weights that no other test has, whose comparison this run might remember.
    path = str(write_model(tmp_path / "model.gguf", "qwen2", "Q4_0", seed=7))
    assert generate(path, "autoregressive").startswith("2 ['transformers.modeling_utils'")
    assert generate(path, "autoregressive") == "2 []"


def test_a_first_start_compiles_one_library_for_model_and_heads(tmp_path: Path) -> None:
    model = tmp_path / "models" / bundled_model().name
    model.parent.mkdir()
    model.symlink_to(bundled_model())
    generate("bundled", "medusa", ENTMTP_CACHE=str(tmp_path))
    assert len(list((tmp_path / "kernels").glob("*.so"))) == 1
