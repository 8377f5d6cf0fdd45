"""Tokenizers of GGUF files: those of the kinds that are read split and join a text as the originals do."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from entmtp.errors import EntMTPError
from entmtp.models.gguf.file import GgufFile, read_gguf
from entmtp.models.gguf.tokenizer import gguf_tokenizer
from entmtp.models.loading.load import encode_chat, load_tokenizer
from tests.helpers.gguf_files import write_model
from tests.helpers.tokenizers import PUBLISHED

BYTES = list(bytes_to_unicode().values())
"""Byte-level BPE's spelling of the 256 bytes."""
SPECIAL = ["<|end|>", "<|user|>"]
TEXTS = st.text(max_size=40) | st.sampled_from(
    ["", " ", "  two", "I'll don't", "12345 1,000", "a\n\n b", "\tx", "naïve 日本 🌕", "<|end|> x", "e\u0301"]
)


@pytest.fixture(scope="module")
def sentencepiece() -> SentencePieceProcessor:
    """Mistral's first vocabulary, of Llama 2's kind, as the package `mistral-common` ships it."""
    return SentencePieceProcessor(model_file=str(PUBLISHED / "tokenizer.model.v1"))


def spm_file(model: SentencePieceProcessor, **changes: Any) -> GgufFile:
    """The metadata that llama.cpp writes for such a vocabulary."""
    count = model.vocab_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in range(count)
    ]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(number) for number in range(count)],
        "tokenizer.ggml.scores": [model.get_score(number) for number in range(count)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }
    return GgufFile(Path("spm.gguf"), metadata | changes, {})


def bpe_file(kind: str, **changes: Any) -> GgufFile:
    """A vocabulary of bytes, a few merges and two special tokens."""
    merges = ["Ġ t", "h e", "Ġt he", "1 2", "12 3", "l l", "' ll"]
    tokens = [*BYTES, *(merge.replace(" ", "") for merge in merges), *SPECIAL]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4],
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }
    return GgufFile(Path("bpe.gguf"), metadata | changes, {})


@pytest.fixture(scope="module")
def spm(sentencepiece: SentencePieceProcessor) -> Any:
    return gguf_tokenizer(spm_file(sentencepiece))


@given(text=TEXTS)
def test_byte_fallback_is_what_sentencepiece_does(text: str, spm: Any, sentencepiece: SentencePieceProcessor) -> None:
    text = text.replace("<s>", "").replace("</s>", "").replace("<unk>", "").replace("\x00", "").replace("▁", "")
    if not text:
        return  # sentencepiece writes nothing, and tokenizers the prefix
    expected = sentencepiece.encode(text)
    assert spm(text)["input_ids"] == [sentencepiece.bos_id(), *expected]
    assert spm.decode(expected) == sentencepiece.decode(expected)


def test_the_file_says_whether_a_space_and_a_beginning_are_added(sentencepiece: SentencePieceProcessor) -> None:
    changes = {
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": True,
    }
    tokenizer = gguf_tokenizer(spm_file(sentencepiece, **changes))
    assert tokenizer.convert_ids_to_tokens(tokenizer("the end")["input_ids"]) == ["the", "▁end", "</s>"]


@pytest.mark.parametrize("kind", ["gpt-2", "default", "smollm", "llama-bpe", "qwen2"])
@given(text=TEXTS)
def test_byte_level_text_comes_back_as_it_was(kind: str, text: str) -> None:
    tokenizer = gguf_tokenizer(bpe_file(kind))
    ids = tokenizer(text)["input_ids"]
    expected = unicodedata.normalize("NFC", text) if kind == "qwen2" else text
    assert tokenizer.decode(ids) == expected.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gpt-2", ["123", "4", "'ll", "Ġthe"]),
        ("smollm", ["1", "2", "3", "4", "'ll", "Ġthe"]),
        ("qwen2", ["1", "2", "3", "4", "'ll", "Ġthe"]),
        ("llama-bpe", ["123", "4", "'ll", "Ġthe"]),
    ],
)
def test_each_kind_splits_numbers_and_words_its_own_way(kind: str, expected: list[str]) -> None:
    tokenizer = gguf_tokenizer(bpe_file(kind))
    assert tokenizer.convert_ids_to_tokens(tokenizer("1234'll the")["input_ids"]) == expected


def test_special_tokens_are_whole_and_are_left_out_of_a_text() -> None:
    tokenizer = gguf_tokenizer(bpe_file("gpt-2"))
    ids = tokenizer("a<|end|><|user|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", *SPECIAL]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<|user|>"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert'; known are gpt2, llama"),
    "split": ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'; known are default, gpt-2"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is no list of type str"),
    "numbers": ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is no list of type str"),
    "no merges": ({"tokenizer.ggml.merges": 3}, "tokenizer.ggml.merges is no list of type str"),
    "triple": ({"tokenizer.ggml.merges": ["a b c"]}, "a merge of its tokenizer is no pair"),
    "unknown merge": ({"tokenizer.ggml.merges": ["q z"]}, "its tokenizer can't be built"),
    "types": ({"tokenizer.ggml.token_type": [1]}, "tokens but 1 types"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_tokenizer_that_cannot_be_read_is_one_line(name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(EntMTPError) as raised:
        gguf_tokenizer(bpe_file("gpt-2", **changes))
    assert "\n" not in str(raised.value)
    assert message in str(raised.value)


def test_a_chat_template_of_the_file_is_used(tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    changes: dict[str, Any] = {"tokenizer.chat_template": template}
    path = write_model(tmp_path / "model.gguf", "llama", "Q8_0", **changes)
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.decode(encode_chat(tokenizer, "abc")) == "[abc]"
    assert gguf_tokenizer(read_gguf(path)).chat_template == template
