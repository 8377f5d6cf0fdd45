"""Model names, refusals and their messages, chat encoding and fingerprints, on tiny random models."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    ViTConfig,
)

from entmtp.errors import EntMTPError
from entmtp.models.fingerprint import model_fingerprint
from entmtp.models.loading.chat_templates import set_chat_template
from entmtp.models.loading.load import encode_chat, load_model, resolve_model
from tests.helpers.gguf_files import write_model

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
WORDS = ["<unk>", "<user>", "<bot>", "hello", "world"]


def tiny_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", chat_template=chat_template)


def tiny_llama(layers: int = 2, vocab: int = 64) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=vocab,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_local_folder_loads_frozen_in_float32(llama_folder: Path) -> None:
    assert resolve_model(str(llama_folder)) == llama_folder
    model, tokenizer = load_model(str(llama_folder))
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert not model.training
    assert not any(values.requires_grad for values in model.parameters())
    assert tokenizer("hello world")["input_ids"] == [3, 4]


def test_dtype_and_attention_are_passed_to_the_model(llama_folder: Path) -> None:
    model, _ = load_model(str(llama_folder), dtype="bfloat16", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/absent", "looked for a folder .*org/absent, for a copy in the hub cache .*offline mode is on"),
        ("./absent", "no such folder .* not a hub name"),
        ("two words", "no such folder .* not a hub name"),
        ("", "holds no config.json"),
        ("absent.gguf", "looked for a folder .*absent.gguf"),
        ("org/absent:weights.gguf", "looked for the file in the hub cache .*offline mode is on"),
        ("two words:weights.gguf", "no such file .*, and 'two words' is no hub name like org/name"),
    ],
)
def test_an_absent_model_says_where_it_was_looked_for(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(lambda: resolve_model(name), message)


def test_a_file_of_a_hubs_repository_is_taken_from_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--org--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    file = write_model(repository / "snapshots" / commit / "weights.gguf", "llama", "Q4_0")
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", partial(huggingface_hub.hf_hub_download, cache_dir=tmp_path)
    )
    assert resolve_model("org/name:weights.gguf") == file


def test_a_file_and_an_empty_folder_are_not_models(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("")
    assert_refused(lambda: resolve_model(str(tmp_path / "weights.bin")), "is a file, but not a .gguf file")
    assert_refused(lambda: resolve_model(str(tmp_path)), "holds no config.json")


def test_models_that_are_not_decoder_only_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path / "t5")
    ViTConfig().save_pretrained(tmp_path / "vit")
    assert_refused(lambda: load_model(str(tmp_path / "t5")), "t5 is an encoder–decoder")
    assert_refused(lambda: load_model(str(tmp_path / "vit")), "vit is not a causal language model")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "configuration cannot be read"), (json.dumps({"model_type": "nonesuch"}), "configuration cannot be read")],
)
def test_a_broken_configuration_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    assert_refused(lambda: load_model(str(tmp_path)), message)


def test_missing_or_broken_weights_are_one_line(llama_folder: Path) -> None:
    weights = llama_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert_refused(lambda: load_model(str(llama_folder)), "cannot be loaded")
    weights.unlink()
    assert_refused(lambda: load_model(str(llama_folder)), "cannot be loaded: .*model.safetensors")


def test_weights_that_lack_a_layer_are_refused_instead_of_random(llama_folder: Path) -> None:
    tiny_llama(layers=1).save_pretrained(llama_folder / "short")
    (llama_folder / "short" / "model.safetensors").replace(llama_folder / "model.safetensors")
    assert_refused(lambda: load_model(str(llama_folder)), r"lack 9 of its parameters, model\.layers\.1\.")


def test_weights_of_another_size_are_one_line(llama_folder: Path) -> None:
    tiny_llama(vocab=65).save_pretrained(llama_folder / "wide")
    (llama_folder / "wide" / "model.safetensors").replace(llama_folder / "model.safetensors")
    assert_refused(lambda: load_model(str(llama_folder)), "cannot be loaded")


def test_unknown_dtype_and_device_are_refused(llama_folder: Path) -> None:
    assert_refused(lambda: load_model(str(llama_folder), dtype="int3"), "dtype 'int3'")
    assert_refused(lambda: load_model(str(llama_folder), device="abacus"), "device 'abacus'")
    assert_refused(lambda: load_model(str(llama_folder), device="cuda:99"), "device 'cuda:99'.* CUDA devices")


def test_chat_template_is_used_where_there_is_one() -> None:
    assert encode_chat(tiny_tokenizer(), "hello world") == [3, 4]
    assert encode_chat(tiny_tokenizer(TEMPLATE), "hello world") == [1, 3, 4, 2]


def test_earlier_messages_come_first_with_and_without_a_template() -> None:
    history = (("user", "world"), ("bot", "hello"))
    assert encode_chat(tiny_tokenizer(), "hello world", history) == [4, 3, 3, 4]
    assert encode_chat(tiny_tokenizer(TEMPLATE), "hello", history) == [1, 4, 2, 3, 1, 3, 2]


def test_a_template_that_refuses_the_messages_is_one_line() -> None:
    picky = tiny_tokenizer("{{ raise_exception('Roles must\nalternate') }}")
    assert_refused(lambda: encode_chat(picky, "hello"), "chat template refuses it: Roles must$")


def test_vicuna_gets_the_format_that_it_was_trained_on() -> None:
    tokenizer = tiny_tokenizer()
    set_chat_template("lmsys/Vicuna-7b-v1.3", tokenizer)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    messages = [
        {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yo."), ("user", "Why?"))
    ]

    def rendered(messages: list[dict[str, str]]) -> object:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    assert rendered(messages) == f"<s>{system} USER: Hi ASSISTANT: Yo.</s>USER: Why? ASSISTANT:"
    other = [{"role": "system", "content": "Be brief."}, messages[0]]
    assert rendered(other) == "<s>Be brief. USER: Hi ASSISTANT:"


def test_other_models_and_models_with_a_template_keep_what_they_have() -> None:
    plain, templated = tiny_tokenizer(), tiny_tokenizer(TEMPLATE)
    set_chat_template("meta-llama/llama-7b", plain)
    set_chat_template("lmsys/vicuna-7b-v1.3", templated)
    assert (plain.chat_template, templated.chat_template) == (None, TEMPLATE)


def test_an_empty_prompt_without_a_template_is_refused() -> None:
    assert_refused(lambda: encode_chat(tiny_tokenizer(), ""), "prompt '': is empty")


def test_fingerprint_is_the_same_in_every_type_and_after_saving(tmp_path: Path) -> None:
    model = tiny_llama()
    fingerprint = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        again: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert model_fingerprint(again) == fingerprint


def test_fingerprints_of_other_weights_and_other_shapes_differ() -> None:
    models_apart = [tiny_llama(), tiny_llama(), tiny_llama(layers=3), tiny_llama(vocab=65)]
    assert len({model_fingerprint(model) for model in models_apart}) == 4


def assert_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(EntMTPError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
