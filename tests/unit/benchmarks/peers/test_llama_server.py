"""Parameters of llama.cpp's server, with a stand-in for its library."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest


class Parameters(SimpleNamespace):
    """The library's parameters as far as they are set, some of them in groups."""

    def __init__(self) -> None:
        groups = {name: SimpleNamespace() for name in ("model", "cpuparams", "cpuparams_batch")}
        super().__init__(**groups, model_alias=set(), hostnames=[], port=8080, n_parallel=1, n_ctx=0)


def test_every_request_in_a_batch_has_the_whole_context(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("xllamacpp")
    library.CommonParams = Parameters  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xllamacpp", library)
    parameters = importlib.import_module("benchmarks.peers.llama_server").parameters
    made = parameters(["m.gguf", "--port", "4321", "--slots", "3", "--context", "100", "--threads", "5"])
    assert (made.model.path, made.model_alias) == ("m.gguf", {"smollm2-135m"})
    assert (made.hostnames, made.port) == (["127.0.0.1"], 4321)
    assert (made.n_parallel, made.n_ctx) == (3, 300)
    assert (made.cpuparams.n_threads, made.cpuparams_batch.n_threads) == (5, 5)
