"""The protocol with llama.cpp's child, without llama.cpp: a stand-in for its library, and interpreters that lack it."""

import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

from benchmarks.peers.llama_peer import LlamaPeer, write_float32
from entmtp.errors import EntMTPError

# 'Decodes' by adding up all that it has read since its memory was cleared: a prompt that was remembered would show.
LIBRARY = """
import ctypes
__version__ = "1.2.3"
llama_token = ctypes.c_int32
llama_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
class Settings: n_ctx = n_batch = n_threads = n_threads_batch = 0
settings, read = Settings(), []
def llama_log_set(callback, data): pass
def llama_backend_init(): print("noise", file=__import__("sys").stderr)
def llama_model_default_params(): return Settings()
def llama_model_load_from_file(path, params): return path.decode().endswith(".gguf")
def llama_context_default_params(): return settings
def llama_init_from_model(model, params): return settings
def llama_sampler_init_greedy(): return "greedy"
def llama_get_memory(context): return read
def llama_memory_clear(memory, data): memory.clear()
def llama_batch_get_one(ids, count): return list(ids[:count])
def llama_decode(context, batch): read.extend(batch); return len(read) > context.n_ctx
def llama_sampler_sample(sampler, context, at): return sum(read)
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text(LIBRARY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("library")
def test_the_child_answers_line_by_line_and_remembers_no_prompt() -> None:
    with LlamaPeer(Path(sys.executable), Path("m.gguf"), 100, 2) as peer:
        assert peer.version == "1.2.3"
        for _ in range(2):
            tokens, seconds = peer.write([1, 2], 4)
            assert tokens == [3, 6, 12, 24]
            assert seconds > 0
        assert peer.write([5], 1)[0] == [5]
    assert peer._process.returncode == 0


@pytest.mark.usefixtures("library")
def test_a_child_that_fails_is_told_with_its_own_last_line() -> None:
    peer = LlamaPeer(Path(sys.executable), Path("m.gguf"), 3, 2)
    with pytest.raises(EntMTPError, match=r"cannot read 1 tokens after 2 new ones") as caught:
        peer.write([1, 2], 4)
    assert "\n" not in str(caught.value)
    with pytest.raises(EntMTPError, match=r"cannot load model\.bin"):
        LlamaPeer(Path(sys.executable), Path("model.bin"), 3, 2)


def test_an_interpreter_without_the_library_is_one_line(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(EntMTPError, match=r"No module named 'llama_cpp'.*needs a working llama-cpp-python") as caught:
        LlamaPeer(bare, Path("m.gguf"), 3, 2)
    assert "\n" not in str(caught.value)


def test_an_absent_interpreter_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match=r"llama-python: '.*nowhere' is no interpreter"):
        LlamaPeer(tmp_path / "nowhere", Path("m.gguf"), 3, 2)


def test_a_gguf_is_written_again_as_float32_with_all_that_it_says(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    writer = GGUFWriter(tmp_path / "small.gguf", arch="llama")
    writer.add_context_length(77)
    writer.add_token_list(["a", "b"])
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_1)
    kind = GGMLQuantizationType.Q4_1
    writer.add_tensor("w", quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("norm", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_float32(tmp_path / "small.gguf", tmp_path / "large.gguf")
    reader = GGUFReader(tmp_path / "large.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert {tensor.tensor_type for tensor in tensors.values()} == {GGMLQuantizationType.F32}
    assert (tensors["w"].data == dequantize(quantize(values, kind), kind)).all()
    assert (tensors["norm"].data == values[0]).all()
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["llama.context_length"] == 77
    assert said["tokenizer.ggml.tokens"] == ["a", "b"]
    assert said["general.file_type"] == LlamaFileType.ALL_F32
    assert said["general.architecture"] == "llama"
