"""A model in blocks, written as a folder of plain numbers; a small file stands in for the bundled one."""

from pathlib import Path

import pytest
import torch

from benchmarks.peers import float_folder as module
from benchmarks.peers.float_folder import float_folder
from entmtp.models.kernels.block_weight import dequantize_layers, formats_of
from entmtp.models.loading.load import load_model
from tests.helpers.gguf_files import write_model

PROMPT = torch.tensor([[5, 17, 80, 33]])


def test_the_folder_has_the_blocks_numbers_and_the_tokenizer(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", "Q4_1")
    folder = float_folder(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model-float32", "model.gguf"]
    model, tokenizer = load_model(str(folder))
    expected, own_tokenizer = load_model(str(path))
    assert formats_of(model) == []
    dequantize_layers(expected)
    with torch.inference_mode():
        assert torch.equal(model(PROMPT).logits, expected(PROMPT).logits)
    assert tokenizer.chat_template == own_tokenizer.chat_template
    assert tokenizer.encode("a b") == own_tokenizer.encode("a b")


def test_a_folder_is_written_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "model.gguf", "llama", "Q4_1")
    leftover = tmp_path / ".model-float32.unfinished" / "of an earlier call"
    leftover.mkdir(parents=True)
    folder = float_folder(path)
    assert not leftover.parent.exists()
    assert not (folder / leftover.name).exists()
    monkeypatch.setattr(module, "load_model", None)
    assert float_folder(path) == folder
