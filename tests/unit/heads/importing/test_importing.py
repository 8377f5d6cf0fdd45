"""Messages of the importer: how it read a good checkpoint, and one line about what is wrong with a bad one."""

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import load_heads
from entmtp.heads.importing import tensors as importing_tensors
from entmtp.heads.importing.import_heads import import_heads
from entmtp.models.build import build_backbone
from tests.helpers.importer_messages import imported, refused
from tests.helpers.published_checkpoints import CONFIG, Model, Published, hydra, medusa, save_tensors, vllm
from tests.helpers.tiny_models import VOCAB, tiny_model

HIDDEN = 32
MODEL = Model(torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB, HIDDEN))


def changed(published: Published, **tensors: torch.Tensor) -> Published:
    """A copy with these tensors added or replaced."""
    return replace(published, tensors=published.tensors | tensors)


def without(missing: str, published: Published) -> Published:
    """A copy without one tensor."""
    return replace(published, tensors={name: one for name, one in published.tensors.items() if name != missing})


def only(file: str, *names: str) -> Published:
    """A checkpoint of these tensors alone."""
    return replace(medusa(MODEL), file=file, config={}, tensors={name: torch.ones(2) for name in names})


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.helpers.saved_project import save_tiny_model

    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


def test_the_first_configurations_name_too_few_heads(tmp_path: Path) -> None:
    published = medusa(MODEL, 5, medusa_num_heads=2, medusa_num_layers=None)
    messages = imported(published.save(tmp_path / "published"), tmp_path / "ours")
    assert messages[0].endswith("medusa_lm_head.pt is of Medusa's and TGI's (tensors like 0.0.linear.weight)")
    assert messages[1] == "config.json says medusa_num_heads 2, but there are tensors for 5: all are imported"
    assert messages[2].endswith(
        "5 medusa heads of 1 blocks with an output layer each, hidden size 32, vocabulary 96,"
        " for any model of these sizes"
    )
    assert len(messages) == 3
    assert json.loads((tmp_path / "ours" / CONFIG).read_text())["model_fingerprint"] == ""


def test_with_a_model_the_heads_are_bound_to_it(model_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model_folder)
    weights = loaded.get_output_embeddings().weight.detach()
    # Nothing but the model tells the vocabulary of these.
    folder = medusa(Model(weights, weights), own=False).save(tmp_path / "published")
    refused(
        folder, "nothing tells its vocabulary; give --model with the model that they are for, here probably 'org/base'"
    )
    messages = imported(folder, tmp_path / "ours", model_folder)
    assert messages[-1].endswith("with the model's own output layer, hidden size 32, vocabulary 257, for that model")
    backbone = build_backbone(loaded)
    assert load_heads(tmp_path / "ours", backbone).config.model_fingerprint == backbone.fingerprint
    other = build_backbone(tiny_model("llama", seed=9, vocab_size=257))
    with pytest.raises(EntMTPError, match="trained for the model with fingerprint"):
        load_heads(tmp_path / "ours", other)


def test_another_models_heads_are_refused(model_folder: Path, tmp_path: Path) -> None:
    small = Model(torch.randn(100, HIDDEN), torch.randn(100, HIDDEN))
    thin = Model(torch.randn(257, 16), torch.randn(257, 16))
    refused(medusa(small).save(tmp_path / "small"), "vocab_size is 100 but the model's is 257", model_folder)
    refused(medusa(thin).save(tmp_path / "thin"), "hidden_size is 16 but the model's is 32", model_folder)
    imported(tmp_path / "small", tmp_path / "ours")
    with pytest.raises(EntMTPError, match="vocab_size is 100 but the model's is 96"):
        load_heads(tmp_path / "ours", build_backbone(tiny_model("llama")))


def test_a_hub_name_is_a_folder_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--ankner--hydra-tiny"
    hydra(MODEL).save(repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    messages: list[str] = []
    import_heads("ankner/hydra-tiny", tmp_path / "ours", None, messages.append)
    assert "4 hydra heads of 1 blocks" in messages[-1]
    with pytest.raises(EntMTPError, match="'ankner/other' is neither a local folder nor a reachable hub repository"):
        import_heads("ankner/other", tmp_path / "others", None, messages.append)


def test_what_is_already_there_stays(tmp_path: Path) -> None:
    folder = medusa(MODEL).save(tmp_path / "published")
    output = tmp_path / "ours"
    output.mkdir()
    imported(folder, output)
    before = (output / "model.safetensors").read_bytes()
    with pytest.raises(EntMTPError, match="holds something; give a folder that is empty"):
        imported(folder, output)
    assert (output / "model.safetensors").read_bytes() == before


class Pickled:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def with_code(folder: Path) -> None:
    tensors = medusa(MODEL).tensors
    torch.save(tensors | {"0.0.linear.bias": Pickled()}, folder / "medusa_lm_head.pt")


def plain_pickle(folder: Path) -> None:
    (folder / "medusa_lm_head.pt").write_bytes(pickle.dumps(Pickled()))


def cut_off(folder: Path) -> None:
    path = folder / "medusa_lm_head.pt"
    path.write_bytes(path.read_bytes()[:-200])


def cut_off_safetensors(folder: Path) -> None:
    (folder / "medusa_lm_head.pt").unlink()
    path = folder / "medusa_lm_head.safetensors"
    save_tensors(path, medusa(MODEL).tensors)
    path.write_bytes(path.read_bytes()[:-200])


def compressed(folder: Path) -> None:
    path = folder / "medusa_lm_head.pt"
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)


def a_list(folder: Path) -> None:
    torch.save([torch.ones(2)], folder / "medusa_lm_head.pt")


def without_weights(folder: Path) -> None:
    (folder / "medusa_lm_head.pt").rename(folder / "weights.bin")


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / CONFIG).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (with_code, "medusa_lm_head.pt holds more than tensors, and what else it holds could run code"),
        (plain_pickle, "medusa_lm_head.pt can't be read (File is not a zip file); download it again"),
        (cut_off, "medusa_lm_head.pt can't be read (File is not a zip file)"),
        (cut_off_safetensors, "medusa_lm_head.safetensors can't be read"),
        (compressed, "it is compressed, which torch.save never does"),
        (a_list, "it is not a dictionary of tensors"),
        (without_weights, "model.bin.index.json (found config.json, weights.bin); give a published checkpoint"),
        (emptied, "(found nothing); give a published checkpoint"),
        (lambda folder: (folder / CONFIG).unlink(), "config.json is missing or not JSON"),
        (config("{"), "config.json is missing or not JSON"),
        (config("[" * 99_999), "config.json is missing or not JSON"),
        (config("[1]"), "config.json is not a JSON object"),
        (config('{"medusa_num_heads": "five"}'), "config.json: medusa_num_heads: 'five' is not accepted"),
        (config('{"medusa_num_layers": 0}'), "config.json: medusa_num_layers: 0 is not accepted"),
        (config('{"medusa_num_heads": 9}'), "medusa_num_heads is 9 but the tensors are those of 3"),
        (config('{"medusa_num_layers": 2}'), "medusa_num_layers is 2 but the tensors are those of 1"),
    ],
)
def test_files_that_are_no_checkpoint(
    spoil: Callable[[Path], object], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = medusa(MODEL).save(tmp_path / "published")
    spoil(folder)
    refused(folder, named)
    assert not (tmp_path / "ran").exists(), "code of the file was run"


NAN = torch.full((HIDDEN,), torch.nan)
BROKEN: dict[str, tuple[Published, str]] = {
    "missing head": (without("1.0.linear.weight", medusa(MODEL)), "'1.0.linear.weight' is missing"),
    "missing bias": (without("2.0.linear.bias", medusa(MODEL)), "'2.0.linear.bias' is missing"),
    "missing layer": (without("1.1.linear.weight", medusa(MODEL, layers=2)), "'1.1.linear.weight' is missing"),
    "missing output": (without("1.1.weight", medusa(MODEL)), "'1.1.weight' is missing"),
    "output elsewhere": (
        changed(without("0.1.weight", medusa(MODEL, 1)), **{"0.2.weight": MODEL.output}),
        "'0.1.weight' is missing",
    ),
    "foreign tensor": (changed(medusa(MODEL), surprise=torch.ones(2)), "tensors 'surprise' should not be there"),
    "a line break": (changed(medusa(MODEL), **{"a\nb": torch.ones(2)}), "tensors 'a\\nb' should not be there"),
    "wrong shape": (
        changed(medusa(MODEL), **{"1.0.linear.weight": torch.ones(HIDDEN, HIDDEN - 1)}),
        "'1.0.linear.weight' has shape [32, 31] instead of [32, 32]",
    ),
    "no matrix": (changed(medusa(MODEL), **{"0.0.linear.weight": torch.ones(HIDDEN)}), "not that of a matrix"),
    "another vocabulary": (
        changed(medusa(MODEL), **{"2.1.weight": torch.ones(VOCAB - 1, HIDDEN)}),
        "'2.1.weight' has shape [95, 32] instead of [96, 32]",
    ),
    "not a number": (changed(medusa(MODEL), **{"0.0.linear.bias": NAN}), "has values that are not finite"),
    "whole numbers": (
        changed(medusa(MODEL), **{"0.0.linear.bias": torch.ones(HIDDEN, dtype=torch.int32)}),
        "is of type torch.int32, not float32, bfloat16 or float16",
    ),
    "billions out of few bytes": (
        changed(medusa(MODEL), **{"0.0.linear.bias": torch.ones(1).expand(HIDDEN)}),
        "is not stored as plain numbers",
    ),
    "too many heads": (
        changed(medusa(MODEL), **{"900.0.linear.weight": torch.ones(HIDDEN, HIDDEN)}),
        "there are tensors for 901 heads, more than 16",
    ),
    "with and without prefix": (
        changed(medusa(MODEL), **{"medusa_head.0.0.linear.bias": torch.ones(HIDDEN)}),
        "some tensors are there with and without a prefix",
    ),
    "no layout": (
        only("model.safetensors", "layers.0.mlp.weight", "fc.weight"),
        "tensors 'fc.weight', 'layers.0.mlp.weight' are of no known layout; known are Medusa's and TGI's (tensors like",
    ),
    "no tensors": (only("model.safetensors"), "no tensors are of no known layout"),
    "vLLM, missing layer": (
        without("blocks.2.layers.0.weight", vllm(MODEL, layers=2)),
        "'blocks.2.layers.0.weight' is missing",
    ),
    "vLLM, some biases": (
        without("blocks.1.layers.0.bias", vllm(MODEL, bias=True)),
        "'blocks.1.layers.0.bias' is missing",
    ),
    "vLLM, missing output": (without("lm_heads.0.weight", vllm(MODEL)), "'lm_heads.0.weight' is missing"),
    "vLLM, map missing": (
        without("token_map", vllm(MODEL, truncated=40)),
        "truncated_vocab_size is 40 but tensor 'token_map' is missing",
    ),
    "vLLM, map of other size": (vllm(MODEL, truncated=40, truncated_vocab_size=41), "'token_map' has shape [40]"),
    "vLLM, map outside": (
        changed(vllm(MODEL, truncated=2), token_map=torch.tensor([1, VOCAB])),
        "'token_map' holds tokens twice, or outside the vocabulary of 96",
    ),
    "vLLM, map with doubles": (
        changed(vllm(MODEL, truncated=2), token_map=torch.tensor([1, 1])),
        "'token_map' holds tokens twice",
    ),
    "vLLM, map of fractions": (
        changed(vllm(MODEL, truncated=2), token_map=torch.tensor([1.0, 2.0])),
        "'token_map' is of type torch.float32, not int32 or int64",
    ),
    "vLLM, rows of other size": (
        changed(vllm(MODEL, truncated=40), **{"lm_heads.1.weight": torch.ones(41, HIDDEN)}),
        "'lm_heads.1.weight' has shape [41, 32] instead of [40, 32]",
    ),
    "vLLM, scale": (vllm(MODEL, original="", scale=0.5), "logit_scale 0.5 of the model's own output layer can't be"),
    "vLLM, too many heads named": (vllm(MODEL, num_heads=4), "num_heads is 4 but the tensors are those of 3"),
    "hydra, missing residual": (
        without("hydra_mlp.1.0.res_connection.bias", hydra(MODEL)),
        "'hydra_mlp.1.0.res_connection.bias' is missing",
    ),
    "hydra, missing layer": (
        without("hydra_mlp.2.1.linear.weight", hydra(MODEL, layers=3)),
        "'hydra_mlp.2.1.linear.weight' is missing",
    ),
    "hydra, no first layer": (
        without("hydra_mlp.0.0.linear.weight", hydra(MODEL, 1)),
        "'hydra_mlp.0.0.linear.weight' is missing",
    ),
    "hydra, missing output": (
        without("hydra_lm_head.3.weight", hydra(MODEL)),
        "'hydra_lm_head.3.weight' is missing",
    ),
    "hydra, other embeddings": (
        changed(hydra(MODEL), **{"input_embed_fn.weight": torch.ones(3, HIDDEN)}),
        "'input_embed_fn.weight' has shape [3, 32] instead of [96, 32]",
    ),
    "hydra, configured as not grounded": (
        hydra(MODEL, grounded_heads=False),
        "grounded_heads is False but the tensors",
    ),
    "hydra, earlier states": (hydra(MODEL, hidden_state_offset=1), "hidden_state_offset is 1; only heads"),
    "hydra, other architecture": (
        hydra(MODEL, hydra_head_arch="new\narch"),
        "of architecture 'new\\narch'; only 'mlp' and 'prefix-mlp' can be imported",
    ),
    "hydra, messages to be of another architecture": (
        changed(hydra(MODEL, dropout=True, layers=4), **{"prefix_embeding_layer.norm.weight": torch.ones(HIDDEN)}),
        "hydra_head_arch is 'mlp' but there are tensors of prefix-mlp",
    ),
    "hydra, cross attention": (
        only("hydra_lm_head.pt", "cross_attn.q_proj.weight", "input_embed_fn.weight"),
        "of architecture 'cross-attn'",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_checkpoint_that_does_not_hold_what_it_should(case: str, tmp_path: Path) -> None:
    published, named = BROKEN[case]
    refused(published.save(tmp_path / "published"), named)


def test_a_checkpoint_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = medusa(MODEL).save(tmp_path / "published")
    monkeypatch.setattr(importing_tensors, "MAX_TENSORS", 8)
    refused(folder, "it has 9 tensors, more than the 8 that heads may have")
    with (folder / "medusa_lm_head.pt").open("r+b") as file:
        file.truncate(importing_tensors.MAX_BYTES + 1)  # holes take no room
    refused(folder, "has 32 GiB, more than the 32 that heads may have")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    folder = medusa(MODEL).save(tmp_path / "published")
    with pytest.raises(EntMTPError, match="is a file; give the folder that holds it"):
        imported(folder / "medusa_lm_head.pt", tmp_path / "ours")
