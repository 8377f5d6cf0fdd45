"""The tokenizer of a GGUF file, from its own fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entmtp.errors import EntMTPError, quoted
from entmtp.models.gguf.file import GgufFile
from entmtp.models.gguf.metadata import items, optional, required

if TYPE_CHECKING:
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerBase

_SPACE = "▁"
_CONTROL, _USER_DEFINED = 3, 4
"""GGUF's types of tokens that no text spells, and of those that are found in a text before it is split."""
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The file's tokenizer, with its chat template.

    Raises:
        EntMTPError: if its kind is unknown, or a field is missing or impossible.
    """
    from transformers import PreTrainedTokenizerFast

    kinds = {"gpt2": _byte_level, "llama": _byte_fallback}
    kind = required(file, "tokenizer.ggml.model", str)
    if kind not in kinds:
        raise _unknown(file, "tokenizer.ggml.model", kind, list(kinds))
    tokens = items(file, "tokenizer.ggml.tokens", str)
    special = {
        field: tokens[number]
        for field, key in _SPECIAL.items()
        if (number := optional(file, f"tokenizer.ggml.{key}_token_id", int)) is not None and 0 <= number < len(tokens)
    }
    try:
        backend = kinds[kind](file, tokens, special)
    except EntMTPError:
        raise
    except Exception as error:  # tokenizers raises plain exceptions
        raise EntMTPError(f"model '{file.path}': its tokenizer can't be built: {error}; download it again") from error
    _add_special(file, backend, tokens, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=optional(file, "tokenizer.chat_template", str),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _unknown(file: GgufFile, key: str, value: str, known: list[str]) -> EntMTPError:
    return EntMTPError(
        f"model '{file.path}': {key} is {quoted(value)}; known are {', '.join(known)}; give the model's Hugging Face"
        " folder or name, with --weights q4 for 4 bits"
    )


def _byte_level(file: GgufFile, tokens: list[str], special: dict[str, str]) -> Tokenizer:
    """Byte-level BPE, whose words are split as the named kind does."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    kinds = ["default", "gpt-2", "smollm", "llama-bpe", "llama3", "qwen2"]
    kind = optional(file, "tokenizer.ggml.pre", str) or "default"
    if kind not in kinds:
        raise _unknown(file, "tokenizer.ggml.pre", kind, kinds)
    pairs = [merge.split(" ") for merge in items(file, "tokenizer.ggml.merges", str)]
    if not all(len(pair) == 2 for pair in pairs):
        raise EntMTPError(f"model '{file.path}': a merge of its tokenizer is no pair; download the file again")
    whole_words = kind in ("llama-bpe", "llama3")
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[(left, right) for left, right in pairs],
        ignore_merges=whole_words,
    )
    backend = Tokenizer(model)
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _words(kind)
    backend.decoder = decoders.ByteLevel()
    return backend


def _words(kind: str) -> pre_tokenizers.PreTokenizer:
    """Split of a text into words, each of which is tokenized alone."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if kind == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if kind in ("default", "gpt-2"):
        return ByteLevel(add_prefix_space=False)
    pattern = _QWEN2_WORDS if kind == "qwen2" else _LLAMA3_WORDS
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_fallback(file: GgufFile, tokens: list[str], special: dict[str, str]) -> Tokenizer:
    """SentencePiece's BPE with byte fallback, as Llama 2 has it: the best scored pair is merged first."""
    from tokenizers import Tokenizer, decoders, models
    from transformers.convert_slow_tokenizer import generate_merges

    scores = items(file, "tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise EntMTPError(
            f"model '{file.path}': its tokenizer has {len(tokens)} tokens but {len(scores)} scores;"
            " download the file again"
        )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    backend = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=special.get("unk_token"), fuse_unk=True, byte_fallback=True)
    )
    prefix = optional(file, "tokenizer.ggml.add_space_prefix", bool)
    prefixed = prefix is None or prefix
    backend.normalizer = _spaces(prefixed)
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefixed else [])])
    return backend


def _spaces(prefixed: bool) -> normalizers.Normalizer:
    from tokenizers.normalizers import Prepend, Replace, Sequence

    return Sequence([*([Prepend(_SPACE)] if prefixed else []), Replace(" ", _SPACE)])


def _add_special(file: GgufFile, backend: Tokenizer, tokens: list[str], special: dict[str, str]) -> None:
    """Mark the special tokens, and put the beginning and the end of a text around it where the file says so."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    kinds = items(file, "tokenizer.ggml.token_type", int)
    if len(kinds) != len(tokens):
        raise EntMTPError(
            f"model '{file.path}': its tokenizer has {len(tokens)} tokens but {len(kinds)} types;"
            " download the file again"
        )
    by_kind = {kind: [token for token, each in zip(tokens, kinds, strict=True) if each == kind] for kind in set(kinds)}
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in by_kind.get(_CONTROL, [])]
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token in by_kind.get(_USER_DEFINED, [])])
    is_sentencepiece = required(file, "tokenizer.ggml.model", str) == "llama"
    begins = optional(file, "tokenizer.ggml.add_bos_token", bool)
    wanted = {"bos_token": is_sentencepiece if begins is None else begins}
    wanted["eos_token"] = bool(optional(file, "tokenizer.ggml.add_eos_token", bool))
    around = {field: special[field] for field, is_wanted in wanted.items() if is_wanted and field in special}
    if around:
        single = [around.get("bos_token"), "$A", around.get("eos_token")]
        backend.post_processor = TemplateProcessing(
            single=" ".join(each for each in single if each),
            special_tokens=[(token, backend.token_to_id(token)) for token in around.values()],
        )
