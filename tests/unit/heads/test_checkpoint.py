import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from entmtp.errors import EntMTPError
from entmtp.heads.checkpoint import BUNDLED_KINDS, KINDS, _with_weights, bundled_heads, load_heads
from entmtp.heads.stateless import StatelessHeads
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.trees.batch import TreeBatch
from tests.helpers.tiny_models import STATELESS_KINDS, TREES, random_heads, random_tokens, tiny_model

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def folder(heads: StatelessHeads, tmp_path: Path) -> Path:
    heads.save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_checkpoint_loads_as_the_same_heads(heads: StatelessHeads, folder: Path, backbone: Backbone) -> None:
    loaded = load_heads(folder, backbone)

    assert type(loaded) is type(heads)
    assert not loaded.training
    saved = load_file(folder / WEIGHTS)
    assert set(saved) == set(heads.state_dict()), "the model's own output layer must not be saved"
    for name, tensor in heads.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    hidden, root = torch.randn(2, backbone.hidden_size), torch.tensor(random_tokens(2))
    trees = TreeBatch.of([TREES["bushy"], TREES["chain"]])
    assert isinstance(loaded, StatelessHeads)
    before, after = heads.propose(hidden, root, trees), loaded.propose(hidden, root, trees)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.log_probs, after.log_probs)


def test_heads_take_the_models_type(folder: Path) -> None:
    backbone = build_backbone(tiny_model("llama", dtype=torch.bfloat16))
    heads = load_heads(folder, backbone)
    assert isinstance(heads, StatelessHeads)
    hidden = torch.randn(1, backbone.hidden_size, dtype=torch.bfloat16)
    proposal = heads.propose(hidden, torch.tensor([3]), TreeBatch.of([TREES["bushy"]]))
    assert proposal.log_probs.dtype == torch.float32
    assert proposal.log_probs.isfinite().all()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: tiny_model("llama", seed=1), "trained for the model with fingerprint"),
        (lambda: tiny_model("llama", hidden_size=48), "hidden_size is 32 but the model's is 48"),
        (lambda: tiny_model("llama", vocab_size=90), "vocab_size is 96 but the model's is 90"),
    ],
    ids=["weights", "hidden size", "vocabulary"],
)
def test_heads_of_another_model_are_refused(folder: Path, other: Callable[[], PreTrainedModel], named: str) -> None:
    with pytest.raises(EntMTPError, match=named):
        load_heads(folder, build_backbone(other()))


def _without_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _garbage(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x04not safetensors" * 10)


def _cut_off(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def _change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _without_a_tensor(folder: Path) -> None:
    _change_tensors(folder, lambda tensors: tensors.pop("down"))


def _with_a_foreign_tensor(folder: Path) -> None:
    _change_tensors(folder, lambda tensors: tensors.update(extra=torch.ones(2)))


def _with_a_short_tensor(folder: Path) -> None:
    _change_tensors(folder, lambda tensors: tensors.update(scale=torch.ones(2)))


def _with_tokens_outside(folder: Path) -> None:
    _change_tensors(folder, lambda tensors: tensors["draft_vocab"].add_(90))


def _without_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def _with_config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / CONFIG).write_text(text)


def _with_field(name: str, value: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {name: value}))

    return change


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (_without_weights, "has no model.safetensors (found config.json, pytorch_model.bin)"),
        (_garbage, "model.safetensors can't be read"),
        (_cut_off, "model.safetensors can't be read"),
        (_without_a_tensor, "tensor down is missing"),
        (_with_a_foreign_tensor, "tensor extra is missing or does not belong to"),
        (_with_a_short_tensor, "can't be read (tensor scale has the shape [2] instead of [4])"),
        (_with_tokens_outside, "tokens outside the model's 96"),
        (_without_config, "config.json is missing or not JSON"),
        (_with_config("{"), "config.json is missing or not JSON"),
        (_with_config("[1]"), "config.json is missing or not JSON"),
        (_with_config("{}"), "model_type 'None'"),
        (
            _with_config('{"model_type": ["entmtp_hydra"]}'),
            "one of entmtp_dflash, entmtp_eagle3, entmtp_hydra, entmtp_medusa",
        ),
        (_with_config('{"model_type": "llama"}'), "model_type 'llama'"),
        (
            _with_field("inner_size", "wide"),
            "config.json can't be read (inner_size is 'wide', not a whole number of at least 0)",
        ),
        (_with_field("num_heads", True), "config.json can't be read (num_heads is True"),
        (_with_field("num_heads", -1), "config.json can't be read (num_heads is -1"),
        (_with_field("model_fingerprint", None), "config.json can't be read (model_fingerprint is None"),
        (_with_field("inner_sizes", 8), "config.json can't be read (inner_sizes is no field of entmtp_"),
    ],
)
def test_a_broken_checkpoint_is_one_line_that_names_it(
    break_it: Callable[[Path], object], named: str, folder: Path, backbone: Backbone
) -> None:
    break_it(folder)
    with pytest.raises(EntMTPError) as raised:
        load_heads(folder, backbone)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["no/such-heads", "/no/such/folder", "not a name"])
def test_absent_heads_are_named(source: str, backbone: Backbone) -> None:
    with pytest.raises(EntMTPError, match=f"'{source}' is neither a local folder nor a reachable hub repository"):
        load_heads(source, backbone)


def test_an_unknown_kind_is_named_with_the_known_ones() -> None:
    with pytest.raises(EntMTPError, match="kind 'eagle' is unknown; choose one of eagle3, hydra, medusa"):
        bundled_heads("eagle")
    assert {bundled_heads(kind).name for kind in BUNDLED_KINDS} == set(BUNDLED_KINDS) == {"eagle3", "hydra", "medusa"}


def test_the_config_says_what_was_saved(heads: StatelessHeads, folder: Path) -> None:
    saved = json.loads((folder / CONFIG).read_text())
    assert saved["model_type"] == f"entmtp_{heads.kind}"
    for field in ("hidden_size", "vocab_size", "num_heads", "inner_size", "draft_vocab_size", "model_fingerprint"):
        assert saved[field] == getattr(heads.config, field)


def test_what_transformers_writes_beside_the_sizes_is_read_over(folder: Path, backbone: Backbone) -> None:
    config = json.loads((folder / CONFIG).read_text())
    theirs = {"transformers_version": "5.23.0", "torch_dtype": "float16"}
    (folder / CONFIG).write_text(json.dumps(config | theirs))
    assert load_heads(folder, backbone).config.fields() == {
        name: value for name, value in config.items() if name not in ("architectures", "dtype")
    }


@pytest.mark.parametrize("kind", BUNDLED_KINDS)
def test_shipped_heads_are_loaded_as_transformers_loaded_them(kind: str) -> None:
    folder = bundled_heads(kind)
    config = KINDS[kind].config_class.of(json.loads((folder / CONFIG).read_text()))
    sizes = {"eagle3": (8, 8192)}.get(kind, (4, 16_384))
    assert (config.hidden_size, config.num_heads, config.draft_vocab_size) == (576, *sizes)
    heads = _with_weights(KINDS[kind], config, load_file(folder / WEIGHTS))
    assert heads.dtype == torch.float16
    for name, tensor in load_file(folder / WEIGHTS).items():
        assert torch.equal(heads.state_dict()[name], tensor)


@pytest.mark.parametrize("kind", STATELESS_KINDS)
def test_heads_without_a_fingerprint_fit_any_model_of_their_shape(kind: str, tmp_path: Path) -> None:
    backbone = build_backbone(tiny_model("llama", seed=9))
    random_heads(kind, backbone, model_fingerprint="").save_pretrained(tmp_path)
    assert load_heads(str(tmp_path), backbone).kind == kind
