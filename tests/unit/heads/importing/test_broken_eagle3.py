"""EAGLE-3 checkpoints that are broken, in every layout: each is refused with one line that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.heads.importing.eagle3_config import NEUTRAL, Eagle3Fields
from tests.helpers.eagle3_checkpoints import DRAFT_VOCAB, Eagle3Checkpoint, eagle3
from tests.helpers.examples import examples
from tests.helpers.importer_messages import imported, refused
from tests.helpers.published_checkpoints import CONFIG, Model, save_tensors
from tests.helpers.tiny_models import VOCAB

HIDDEN = 32
MODEL = Model(torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB, HIDDEN))
IDS = "eagle_aux_hidden_state_layer_ids"


class Code:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def safe() -> Eagle3Checkpoint:
    """SafeAILab's layout."""
    return eagle3(MODEL)


def spec(**options: Any) -> Eagle3Checkpoint:
    """speculators' layout."""
    return eagle3(MODEL, "speculators", **options)


def sgl(**options: Any) -> Eagle3Checkpoint:
    """SGLang's layout."""
    return eagle3(MODEL, "SGLang", **options)


def deep(**options: Any) -> Eagle3Checkpoint:
    """DeepSpec's layout, of five states and the whole vocabulary."""
    defaults: dict[str, Any] = {"features": (1, 2, 4, 5, 6), "draft_vocab": None, "norms_heads": True}
    return eagle3(MODEL, "DeepSpec", **(defaults | options))


def offsets(first: int, second: int | None = None) -> torch.Tensor:
    """Offsets of a draft vocabulary, with the first ones replaced."""
    changed = safe().tensors["d2t"].clone()
    changed[0] = first
    if second is not None:
        changed[1] = second
    return changed


def nested(**fields: Any) -> Eagle3Checkpoint:
    """speculators' layout with changes within ``transformer_layer_config``."""
    checkpoint = spec()
    return checkpoint.configured(transformer_layer_config=checkpoint.config["transformer_layer_config"] | fields)


MID, ZERO = "midlayer__", "layers__0__"
NAN = torch.full((HIDDEN,), torch.nan)
CASES: dict[str, tuple[Eagle3Checkpoint, str]] = {
    "SafeAILab, missing projection": (safe().without("midlayer.self_attn.k_proj.weight"), "k_proj.weight' is missing"),
    "SafeAILab, missing fc": (safe().without("fc.weight"), "'fc.weight' is missing"),
    "SafeAILab, missing norm": (safe().without("midlayer.hidden_norm.weight"), "hidden_norm.weight' is missing"),
    "SafeAILab, offsets missing": (safe().without("d2t").without("t2d"), "tensor 'd2t' is missing"),
    "SafeAILab, narrow attention": (
        safe().changed(**{f"{MID}self_attn__q_proj__weight": torch.ones(32, 32)}),
        "q_proj.weight' has shape [32, 32] instead of [32, 64]",
    ),
    "SafeAILab, foreign tensor": (safe().changed(surprise=torch.ones(2)), "tensors 'surprise' should not be there"),
    "SafeAILab, bias that nothing names": (
        safe().changed(**{f"{MID}self_attn__q_proj__bias": torch.ones(32)}),
        "tensors 'midlayer.self_attn.q_proj.bias' should not be there",
    ),
    "SafeAILab, whole numbers": (
        safe().changed(norm__weight=torch.ones(HIDDEN, dtype=torch.int32)),
        "'norm.weight' is of type torch.int32, not float32",
    ),
    "SafeAILab, not a number": (safe().changed(norm__weight=NAN), "'norm.weight' has values that are not finite"),
    "SafeAILab, offset out of range": (safe().changed(d2t=offsets(VOCAB)), "'d2t' names tokens twice, or outside"),
    "SafeAILab, offset below zero": (safe().changed(d2t=offsets(-1)), "'d2t' names tokens twice, or outside"),
    "SafeAILab, tokens twice": (safe().changed(d2t=offsets(1, 0)), "'d2t' names tokens twice, or outside"),
    "SafeAILab, offsets of fractions": (
        safe().changed(d2t=torch.zeros(DRAFT_VOCAB)),
        "'d2t' is of type torch.float32, not int32 or int64",
    ),
    "SafeAILab, mask disagrees": (
        safe().changed(t2d=torch.zeros(VOCAB, dtype=torch.bool)),
        "tensors 't2d' and 'd2t' disagree on the draft vocabulary",
    ),
    "SafeAILab, mask of numbers": (
        safe().changed(t2d=torch.zeros(VOCAB, dtype=torch.int64)),
        "'t2d' is of type torch.int64, not bool",
    ),
    "SafeAILab, mask of other size": (
        safe().changed(t2d=torch.zeros(VOCAB + 1, dtype=torch.bool)),
        "'t2d' has shape [97] instead of [96]",
    ),
    "SafeAILab, unknown field": (
        safe().configured(attention_temperature=2),
        "'attention_temperature' is 2, and this importer does not know the field, which may change the heads",
    ),
    "SafeAILab, size missing": (safe().configured(hidden_size=None), "hidden_size"),
    "SafeAILab, size as text": (safe().configured(hidden_size="32"), "hidden_size: '32' is not accepted"),
    "SafeAILab, too small a model": (
        safe().configured(num_target_layers=6),
        "a model of 6 layers is too shallow for the default ones",
    ),
    "SafeAILab, other vocabulary": (
        safe().configured(draft_vocab_size=41),
        "tensor 'd2t' has shape [40] instead of [41]",
    ),
    "SafeAILab, more guesses than tokens": (
        safe().configured(draft_vocab_size=97),
        "the draft vocabulary has 97 tokens and the model's 96",
    ),
    "SafeAILab, tokens without end": (
        safe().configured(vocab_size=10**13, draft_vocab_size=10**13),
        "vocab_size: 10000000000000 is not accepted: input should be less than or equal to 16777216",
    ),
    "SafeAILab, narrower than the model": (
        eagle3(MODEL, hidden=48),
        "target_hidden_size is 32 but hidden_size 48; then embed_tokens.weight and lm_head.weight must be there",
    ),
    "SafeAILab, other activation": (
        safe().configured(hidden_act="gelu"),
        "hidden_act is 'gelu'; only heads with 'silu'",
    ),
    "SafeAILab, table for output": (
        eagle3(MODEL, own_embeddings=True, own_output=False, tie_word_embeddings=True),
        "tie_word_embeddings is True",
    ),
    "SafeAILab, positions by length": (
        safe().configured(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "rope_scaling.rope_type is 'dynamic'; only default, linear, llama3, yarn can be imported",
    ),
    "SafeAILab, positions without factor": (
        safe().configured(rope_scaling={"type": "linear"}),
        "rope_scaling.factor is None, not a number above 0",
    ),
    "SafeAILab, unknown parameter of positions": (
        safe().configured(rope_scaling={"type": "linear", "factor": 2.0, "twist": 1}),
        "'rope_scaling.twist' is unknown for the type 'linear'",
    ),
    "SafeAILab, two angles": (
        safe().configured(rope_theta=5.0, rope_scaling={"type": "linear", "factor": 2.0, "rope_theta": 6.0}),
        "rope_theta is 5.0 and also something else",
    ),
    "speculators, both norms": (
        spec(fc_norm=True).configured(norm_before_fc=True),
        "fc_norm and norm_before_fc are both true; heads have one of them",
    ),
    "speculators, norm missing": (
        spec().configured(norm_before_fc=True),
        "tensor 'input_norm.weight' is missing",
    ),
    "speculators, norm that nothing names": (
        spec(fc_norm=True).configured(fc_norm=False),
        "tensors 'fc_norm.0.weight', 'fc_norm.1.weight', 'fc_norm.2.weight' should not be there",
    ),
    "speculators, layers descend": (
        spec().configured(**{IDS: [5, 4, 2]}),
        f"{IDS} is [5, 4, 2], not layer numbers in ascending order",
    ),
    "speculators, two layers for three": (
        spec().configured(**{IDS: [2, 4]}),
        "'fc.weight' has shape [32, 96] instead of [32, 64]",
    ),
    "speculators, no list of layers": (spec().configured(**{IDS: "2,4,5"}), f"{IDS}: '2,4,5' is not accepted"),
    "speculators, other kind": (
        spec().configured(speculators_model_type="dflash"),
        "speculators_model_type is 'dflash'; only heads with 'eagle3' can be imported",
    ),
    "speculators, P-EAGLE": (
        spec().configured(mask_token_id=3),
        "mask_token_id 3 is P-EAGLE's, whose heads guess all depths in one pass",
    ),
    "speculators, P-EAGLE by its architecture": (
        spec().configured(architectures=["PEagleDraftModel"]),
        "architectures ['PEagleDraftModel'] is P-EAGLE's",
    ),
    "speculators, P-EAGLE by its tensor": (
        spec().changed(mask_hidden=torch.ones(1, 96)),
        "tensor 'mask_hidden' is P-EAGLE's",
    ),
    "speculators, layer as text": (
        spec().configured(transformer_layer_config="llama"),
        "transformer_layer_config is 'llama', not a JSON object",
    ),
    "speculators, unknown nested field": (nested(residual_multiplier=0.5), "'residual_multiplier' is 0.5, and this"),
    "speculators, other layer": (nested(model_type="gpt_oss"), "model_type: 'gpt_oss' is not accepted"),
    "speculators, windowed": (nested(sliding_window=128), "sliding_window is 128; only heads with full attention"),
    "speculators, heads that do not fit": (
        nested(num_key_value_heads=3),
        "num_attention_heads is 4, which does not fit num_key_value_heads 3",
    ),
    "speculators, second layer missing": (
        nested(num_hidden_layers=2),
        "'layers.1.self_attn.q_proj.weight' is missing",
    ),
    "speculators, second layer that nothing names": (
        spec(layers=2).configured(transformer_layer_config=spec().config["transformer_layer_config"]),
        "and 5 more should not be there",
    ),
    "SGLang, unknown nested field": (
        sgl().configured(eagle_config={IDS: [1, 3, 4], "twice\n": True}),
        "'eagle_config.twice\\n' is True, and this importer does not know the field",
    ),
    "SGLang, no states": (
        sgl().configured(eagle_config={"use_aux_hidden_state": False}),
        "eagle_config.use_aux_hidden_state is False; only heads with True",
    ),
    "SGLang, layers twice": (
        sgl().configured(**{IDS: [2, 4, 5]}),
        f"{IDS} and eagle_config.{IDS} are both given; leave out one",
    ),
    "SGLang, layers of fractions": (
        sgl().configured(eagle_config={IDS: [1.5, 3, 4]}),
        f"eagle_config.{IDS} is [1.5, 3, 4], not a list of layer numbers",
    ),
    "SGLang, one norm of three missing": (
        sgl(fc_norm=True).without("fc_norm.1.weight"),
        "tensor 'fc_norm.1.weight' is missing",
    ),
    "SGLang, with and without prefix": (
        sgl().changed(model__norm__weight=torch.ones(HIDDEN)),
        "some tensors are there with and without a prefix",
    ),
    "DeepSpec, half of the norms": (
        deep().without("layers.0.self_attn.k_norm.weight"),
        "'layers.0.self_attn.k_norm.weight' is missing",
    ),
    "DeepSpec, no norms": (deep(norms_heads=False), "'layers.0.self_attn.q_norm.weight' is missing"),
    "DeepSpec, layer beyond the model": (
        deep().configured(target_layer_ids=[0, 1, 3, 4, 8]),
        "target_layer_ids is [0, 1, 3, 4, ...], not layer numbers in ascending order of a model with 8",
    ),
    "DeepSpec, fewer layers": (
        deep().configured(target_layer_ids=[0, 1, 3]),
        "'fc.weight' has shape [32, 160] instead of [32, 96]",
    ),
    "DeepSpec, output of other size": (
        deep().changed(lm_head__weight=torch.ones(VOCAB - 1, HIDDEN)),
        "tensor 'd2t' is missing",
    ),
    "DeepSpec, sliding layers": (
        deep().configured(layer_types=["sliding_attention"]),
        "layer_types is ['sliding_attention']; only heads with full attention",
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_checkpoint_that_does_not_hold_what_it_should(case: str, tmp_path: Path) -> None:
    checkpoint, named = CASES[case]
    refused(checkpoint.save(tmp_path / "published"), named)


def _code(folder: Path) -> None:
    torch.save(safe().tensors | {"norm.weight": Code()}, folder / "pytorch_model.bin")


def _cut_off(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()
    path = folder / "model.safetensors"
    save_tensors(path, safe().tensors)
    path.write_bytes(path.read_bytes()[:-100])


def _index(**names: object) -> Callable[[Path], None]:
    """Replaces the weights by an index of these files by tensor."""

    def spoil(folder: Path) -> None:
        (folder / "pytorch_model.bin").rename(folder / "part.bin")
        (folder / "copy.bin").write_bytes((folder / "part.bin").read_bytes())
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_code, "pytorch_model.bin holds more than tensors, and what else it holds could run code"),
        (_cut_off, "model.safetensors can't be read"),
        (lambda folder: (folder / CONFIG).write_text("{"), "config.json is missing or not JSON"),
        (lambda folder: (folder / CONFIG).unlink(), "config.json is missing or not JSON"),
        (_index(), "weight_map is {}, not files by tensor"),
        (_index(fc=1), "weight_map is {'fc': 1}, not files by tensor"),
        (_index(fc="part.bin", norm="absent.bin"), "names 'absent.bin', which is no file next to it"),
        (_index(fc="../published/part.bin"), "names '../published/part.bin', which is no file next to it"),
        (_index(fc="part.bin", norm="copy.bin"), "are in two of its files"),
    ],
)
def test_files_that_are_no_checkpoint(
    spoil: Callable[[Path], object], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = safe().save(tmp_path / "published")
    spoil(folder)
    refused(folder, named)
    assert not (tmp_path / "ran").exists(), "code of the file was run"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FIELDS = (*Eagle3Fields.model_fields, *NEUTRAL, "architectures", "transformer_layer_config", "mask_token_id")


@given(checkpoint=st.sampled_from([safe(), spec(), sgl(), deep()]), field=st.sampled_from(FIELDS), value=ANY_JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(per_hundred=100))
def test_any_value_of_a_field_is_read_or_refused(
    checkpoint: Eagle3Checkpoint, field: str, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    changed = checkpoint.configured(**{field: value})
    if "transformer_layer_config" in changed.config and field in Eagle3Fields.model_fields:
        nested_fields = changed.config["transformer_layer_config"] | {field: value}
        changed = checkpoint.configured(transformer_layer_config=nested_fields)
    message = ""
    try:
        imported(changed.save(folder / "published"), folder / "ours")
    except EntMTPError as error:
        message = str(error)
    assert "\n" not in message
