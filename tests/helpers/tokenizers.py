"""Tokenizers of every kind, made by hand or published, as tests of text need them."""

from __future__ import annotations

import base64
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import mistral_common
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

PUBLISHED = Path(mistral_common.__file__).parent / "data"
SPACE = "▁"
SPECIAL = ["<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [f"{SPACE}{word}" for word in ("the", "a", "Paris", "capital", "true", "is")]
PARTS = ["a", "b", "true", SPACE, SPACE * 2, ".", "\ufffd", "é", "日", "##x", "n't", "ed</w>", "zz|", "\n"]
HALVES = [*"€é😀".encode()]
"""Bytes that make characters in the right order, and none in most others."""

_SPACES = decoders.Replace(SPACE, " ")
DECODERS: dict[str, decoders.Decoder | None] = {
    "byte fallback": decoders.Sequence([_SPACES, decoders.ByteFallback(), decoders.Fuse()]),
    "byte fallback, strip": decoders.Sequence(
        [_SPACES, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "byte fallback, metaspace": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "metaspace": decoders.Metaspace(),
    "metaspace, never first": decoders.Metaspace(prepend_scheme="never"),
    "wordpiece": decoders.WordPiece(),
    "wordpiece, as it is": decoders.WordPiece(cleanup=False),
    "bpe": decoders.BPEDecoder(),
    "words": None,
    "ctc": decoders.CTC(pad_token="a", word_delimiter_token="|"),
    "text replaced": decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "X")]),
}
KINDS = (*DECODERS, "written in Python", "byte level", "Mistral's SentencePiece", "Mistral's Tekken")


@cache
def made(kind: str) -> Tokenizer:
    """The tokenizer of a kind; to be treated as read-only."""
    if kind == "byte level":
        return byte_level()
    if kind == "Mistral's SentencePiece":
        return _sentencepiece()
    if kind == "Mistral's Tekken":
        return _tekken()
    return with_decoder(decoders.Decoder.custom(_Replaced()) if kind == "written in Python" else DECODERS[kind])


class _Replaced:
    """A decoder that tells nothing about itself."""

    def decode_chain(self, tokens: list[str]) -> list[str]:
        return ["".join(tokens).replace("ab", "X")]


def with_decoder(decoder: decoders.Decoder | None) -> Tokenizer:
    """Words, parts of words and byte tokens, decoded as asked for."""
    vocabulary = ["<unk>", *SPECIAL, *BYTES, *WORDS, *PARTS]
    tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate(vocabulary)}, [], byte_fallback=True))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<tool>"])
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def byte_level(words: Sequence[str] = (" Paris", " the", "é", "😀", "a€")) -> Tokenizer:
    """A token for each byte, and for each of the words."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    names = [*signs, *("".join(part for part, _ in spell(word)) for word in words)]
    tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<tool>", "ünlisted"])
    return tokenizer


def _sentencepiece() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(PUBLISHED / "tokenizer.model.v1", Path(folder) / "tokenizer.model")
        tokenizer: Tokenizer = LlamaTokenizer.from_pretrained(folder).backend_tokenizer
    return tokenizer


def _tekken() -> Tokenizer:
    """Its vocabulary and decoder; without merges, so that it only decodes."""
    published = json.loads((PUBLISHED / "tekken_240911.json").read_text())
    specials = published["config"]["default_num_special_tokens"]
    count = published["config"]["default_vocab_size"] - specials
    signs = bytes_to_unicode()
    names = [
        "".join(signs[byte] for byte in base64.b64decode(one["token_bytes"])) for one in published["vocab"][:count]
    ]
    first = [f"<SPECIAL_{at}>" for at in range(specials)]
    tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate([*first, *names])}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(first)
    return tokenizer


def ids(tokenizer: Tokenizer, *names: str) -> list[int]:
    """The ids of tokens by their names."""
    found = {name: tokenizer.token_to_id(name) for name in names}
    assert None not in found.values(), found
    return [token for name in names if (token := found[name]) is not None]


def random_tokens(kind: str, rng: random.Random, count: int) -> list[int]:
    """Tokens of which many are parts of characters; some are special, some not in the vocabulary."""
    hot, size = _hot(kind)
    return [rng.choice(hot) if rng.random() < 0.8 else rng.randrange(size) for _ in range(count)]


@cache
def _hot(kind: str) -> tuple[list[int], int]:
    """Tokens that are hard to decode one by one; and a bound of all ids, of which a few name no token."""
    tokenizer = made(kind)
    names = [*WORDS, *PARTS, *SPECIAL, "Ġ", "ĠParis", "Ġthe", "<tool>", "<0x0A>", "<0x20>", "<0x41>"]
    names += [f"<0x{byte:02X}>" for byte in HALVES] + [bytes_to_unicode()[byte] for byte in HALVES]
    hot = [found for name in names if (found := tokenizer.token_to_id(name)) is not None]
    return hot, tokenizer.get_vocab_size() + 3
