"""llama.cpp under an interpreter of its own: greedy text of prompts that come as lines of JSON.

    PYTHON llama_child.py MODEL.gguf CONTEXT THREADS

needs llama-cpp-python and nothing else of this project. It says ``{"version": ...}`` once the model is loaded; then
every line ``{"prompt": [...], "new_tokens": n}`` is answered with ``{"tokens": [...], "seconds": s}``. An end-of-text
token does not end a text, so that its time is always that of n tokens. It goes when its input ends.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from typing import Any

import llama_cpp


class Greedy:
    """A loaded model. Its cache is emptied before each text, so that no prompt is remembered."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        # Kept alive, because the library calls it; its log would only hide an error's line.
        self.silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        loading = llama_cpp.llama_model_default_params()
        # Weights repacked for AMX crash some processors; on others these files are as fast without.
        loading.use_extra_bufts = False
        model = llama_cpp.llama_model_load_from_file(path.encode(), loading)
        if not model:
            raise ValueError(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = context
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, settings)
        self.sampler = llama_cpp.llama_sampler_init_greedy()

    def write(self, prompt: list[int], new_tokens: int) -> list[int]:
        """``new_tokens`` tokens after ``prompt``."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        tokens: list[int] = []
        unread = prompt
        while len(tokens) < new_tokens:
            ids = (llama_cpp.llama_token * len(unread))(*unread)
            if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(ids, len(unread))):
                raise ValueError(f"llama.cpp cannot read {len(unread)} tokens after {len(tokens)} new ones")
            tokens.append(llama_cpp.llama_sampler_sample(self.sampler, self.context, -1))
            unread = tokens[-1:]
        return tokens


def say(message: dict[str, Any]) -> None:
    """One line to whoever started this."""
    print(json.dumps(message), flush=True)


def main(path: str, context: str, threads: str) -> None:
    """Answers lines until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark ends this by closing its input
    greedy = Greedy(path, int(context), int(threads))
    say({"version": llama_cpp.__version__})
    for line in sys.stdin:
        request = json.loads(line)
        began = time.perf_counter()
        tokens = greedy.write(request["prompt"], request["new_tokens"])
        say({"tokens": tokens, "seconds": time.perf_counter() - began})


if __name__ == "__main__":
    main(*sys.argv[1:])
