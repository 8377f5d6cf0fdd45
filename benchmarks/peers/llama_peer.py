"""llama.cpp as a peer: a child process under another interpreter, and the bundled model's weights in its format."""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, Keys, LlamaFileType
from gguf.quants import dequantize

from entmtp.errors import EntMTPError
from entmtp.files import write_whole
from entmtp.models.loading.bundled import GGUF_NAME, bundled_model

CHILD = Path(__file__).with_name("llama_child.py")
HOW_TO_ADD = (
    "llama.cpp is not compared: make an environment of its own (python -m venv llama;"
    " llama/bin/pip install llama-cpp-python) and give --llama-python llama/bin/python"
)
LLAMA = "llama.cpp Q4_1"
GRACE_SECONDS = 10


class LlamaPeer:
    """A running child that holds one GGUF file.

    Raises:
        EntMTPError: the interpreter is absent or lacks llama-cpp-python, or the child ends early; one line says which.
    """

    def __init__(self, python: Path, gguf: Path, context: int, threads: int, child: Path = CHILD) -> None:
        self._python = python
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        command = [str(python), str(child), str(gguf), str(context), str(threads)]
        try:
            # In a session of its own, so that Ctrl-C reaches only the benchmark, which then ends the child.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            raise EntMTPError(
                f"llama-python: '{python}' is no interpreter ({error.strerror}); give its path"
            ) from error
        self.version: str = self._answer()["version"]

    def write(self, prompt: list[int], new_tokens: int) -> tuple[list[int], float]:
        """``new_tokens`` greedy tokens after ``prompt``, and the seconds that they took."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer says why
            print(json.dumps({"prompt": prompt, "new_tokens": new_tokens}), file=self._process.stdin, flush=True)
        answer = self._answer()
        return answer["tokens"], answer["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {self._process.returncode}"
        self.close()
        raise EntMTPError(
            f"llama-python: the child of '{self._python}' ended ({reason}); the interpreter needs a working"
            " llama-cpp-python"
        )

    def close(self) -> None:
        """Ends the child: its input ends, and if it still works then, it is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bundled_ggufs(folder: Path) -> dict[str, Path]:
    """The bundled model's own 4-bit file, and the same weights as float32, which are stored in ``folder``; by name.

    Raises:
        EntMTPError: if the file is neither installed nor to be downloaded.
    """
    small, large = bundled_model(), folder / GGUF_NAME.replace("Q4_1", "F32")
    if not large.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(large, lambda unfinished: write_float32(small, unfinished))
    return {LLAMA: small, "llama.cpp F32": large}


def write_float32(source: Path, target: Path) -> None:
    """Writes the GGUF file ``source`` again with every tensor as float32."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, arch=str(reader.fields[Keys.General.ARCHITECTURE].contents()))
    for name, field in reader.fields.items():
        kind = field.types[0] if field.types else None
        if kind is None or name.startswith("GGUF.") or name in (Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE):
            continue
        items = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=items)
    writer.add_file_type(LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
