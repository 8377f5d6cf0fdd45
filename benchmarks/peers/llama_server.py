"""llama.cpp's own server with an OpenAI-compatible API, under an interpreter of its own.

    PYTHON benchmarks/peers/llama_server.py MODEL.gguf --port 8178

needs xllamacpp, which has that server in it, and nothing else of this project. As many requests as there are slots are
computed in one batch.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence

import xllamacpp


def parameters(words: Sequence[str] | None = None) -> xllamacpp.CommonParams:
    """The server's parameters from a command line; what has no option stays as the library sets it."""
    parser = argparse.ArgumentParser(description="Serve a GGUF file with llama.cpp on 127.0.0.1 until Ctrl-C.")
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--name", default="smollm2-135m", help="that clients request")
    parser.add_argument("--port", type=int, default=8178)
    parser.add_argument("--slots", type=int, default=8, help="requests in one batch")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a request")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(words)
    made = xllamacpp.CommonParams()
    made.model.path = given.model
    made.model_alias = {given.name}
    made.hostnames, made.port = ["127.0.0.1"], given.port
    made.n_parallel, made.n_ctx = given.slots, given.slots * given.context
    made.cpuparams.n_threads = made.cpuparams_batch.n_threads = given.threads
    return made


if __name__ == "__main__":
    server = xllamacpp.Server(parameters())
    print(f"{server.listening_address}/v1", flush=True)
    threading.Event().wait()
