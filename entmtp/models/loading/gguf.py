"""Convert a GGUF file of a Llama model with a byte-level BPE vocabulary to a folder that loads in seconds."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from entmtp.models.loading.quiet import quiet_loading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTROL_TOKEN = 3  # the GGUF format's token type for tokens that are never spelt out by text


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file, dequantized to float32, and its tokenizer to `folder` as safetensors and JSON."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet_loading():
        source = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    # A model loaded from GGUF is marked as quantized and can't be saved, although its weights are plain float32. So the
    # weights move, without a copy, to a new model whose configuration has no such mark.
    config = source.config
    del config.quantization_config
    with torch.device("meta"):
        plain = type(source)(config)
    plain.load_state_dict(source.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = source.generation_config
    with quiet_loading():
        plain.save_pretrained(folder)
    read_tokenizer(gguf).save_pretrained(folder)


def read_tokenizer(gguf: Path) -> "PreTrainedTokenizerBase":
    """Build the tokenizer of a GGUF file from its fields.

    The GGUF reader of transformers changes the special tokens from version to version. It also lacks a rule of this
    vocabulary ('smollm'): every digit is split off before the text is split into words.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    reader = GGUFReader(gguf)

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    tokens: list[str] = field("ggml.tokens")
    merges = [(left, right) for left, right in (merge.split(" ") for merge in field("ggml.merges"))]
    bpe = models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
    backend = Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, field("ggml.token_type"), strict=True) if kind == CONTROL_TOKEN]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[field("ggml.bos_token_id")],
        eos_token=tokens[field("ggml.eos_token_id")],
        unk_token=tokens[field("ggml.unknown_token_id")],
        pad_token=tokens[field("ggml.padding_token_id")],
        chat_template=field("chat_template"),
        clean_up_tokenization_spaces=False,
    )
