"""DFlash and DSpark checkpoints that are not what they should be are refused with one line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entmtp.errors import EntMTPError
from entmtp.heads.importing.dflash_config import NEUTRAL, DFlashFields
from tests.helpers.dflash_checkpoints import DRAFT_VOCAB, DFlashCheckpoint, dflash
from tests.helpers.examples import examples
from tests.helpers.importer_messages import imported, refused
from tests.helpers.published_checkpoints import Model, save_tensors
from tests.helpers.tiny_models import VOCAB

HIDDEN = 32
MODEL = Model(torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB, HIDDEN))
IDS = "aux_hidden_state_layer_ids"
W1, W2 = "markov_head.markov_w1.weight", "markov_head.markov_w2.weight"
DSPARK: dict[str, Any] = {"rank": 6, "confidence": "token"}


class Code:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def lab(**options: Any) -> DFlashCheckpoint:
    """z-lab's layout."""
    return dflash(MODEL, **options)


def deep(**options: Any) -> DFlashCheckpoint:
    """DeepSpec's layout of DSpark heads."""
    return dflash(MODEL, "DeepSpec", **(DSPARK | options))


def spec(**options: Any) -> DFlashCheckpoint:
    """speculators' layout of DFlash heads with a draft vocabulary."""
    return dflash(MODEL, "speculators", **({"draft_vocab": DRAFT_VOCAB} | options))


def own(**fields: Any) -> DFlashCheckpoint:
    """z-lab's layout with changes within ``dflash_config``; None removes a field."""
    changed = lab().config["dflash_config"] | fields
    return lab().configured(dflash_config={name: value for name, value in changed.items() if value is not None})


def nested(**fields: Any) -> DFlashCheckpoint:
    """speculators' layout with changes within ``transformer_layer_config``."""
    return spec().configured(transformer_layer_config=spec().config["transformer_layer_config"] | fields)


NAN = torch.full((HIDDEN,), torch.nan)
CASES: dict[str, tuple[DFlashCheckpoint, str]] = {
    "z-lab, missing projection": (
        lab().without("layers.1.self_attn.k_proj.weight"),
        "'layers.1.self_attn.k_proj.weight' is missing",
    ),
    "z-lab, missing norm of keys": (
        lab().without("layers.0.self_attn.k_norm.weight"),
        "'layers.0.self_attn.k_norm.weight' is missing",
    ),
    "z-lab, missing fc": (lab().without("fc.weight"), "'fc.weight' is missing"),
    "z-lab, missing last norm": (lab().without("norm.weight"), "'norm.weight' is missing"),
    "z-lab, another number of states": (
        own(target_layer_ids=[1, 3]),
        "'fc.weight' has shape [32, 96] instead of [32, 64]",
    ),
    "z-lab, foreign tensor": (lab().changed(surprise=torch.ones(2)), "tensors 'surprise' should not be there"),
    "z-lab, a mask's own embedding": (
        lab().changed(mask_embedding=torch.ones(HIDDEN)),
        "tensors 'mask_embedding' should not be there",
    ),
    "z-lab, layer that nothing names": (
        lab(layers=3).configured(num_hidden_layers=2, layer_types=["full_attention"] * 2),
        "and 7 more should not be there",
    ),
    "z-lab, layer that is not there": (lab().configured(num_hidden_layers=3), "'layers.2.self_attn.q_proj.weight' is"),
    "z-lab, whole numbers": (
        lab().changed(hidden_norm__weight=torch.ones(HIDDEN, dtype=torch.int32)),
        "'hidden_norm.weight' is of type torch.int32, not float32",
    ),
    "z-lab, not a number": (lab().changed(norm__weight=NAN), "'norm.weight' has values that are not finite"),
    "z-lab, bias": (lab().configured(attention_bias=True), "attention_bias is True; only heads with False"),
    "z-lab, no architecture": (
        lab().configured(architectures=None),
        "architectures is None; it must be ['DFlashDraftModel'] (z-lab's) or ['Qwen3DSparkModel']",
    ),
    "z-lab, DFlash 2": (
        lab().configured(architectures=["DFlash2DraftModel"]),
        "architectures is ['DFlash2DraftModel']; it must be ['DFlashDraftModel'] (z-lab's)",
    ),
    "z-lab, another architecture of DSpark": (
        lab().configured(architectures=["DSparkDraftModel"]),
        "architectures is ['DSparkDraftModel']; it must be",
    ),
    "z-lab, a bias that its architecture has not": (
        lab(rank=6).configured(markov_rank=6),
        "'markov_rank' is 6, and this importer does not know the field, which may change the heads",
    ),
    "z-lab, other layers": (lab().configured(model_type="llama"), "model_type is 'llama'; only heads with 'qwen3'"),
    "z-lab, no layers named": (own(target_layer_ids=None), "target_layer_ids is None, not a list of layer numbers"),
    "z-lab, none of the layers": (own(target_layer_ids=[]), "target_layer_ids is [], not a list of layer numbers"),
    "z-lab, layers descend": (
        own(target_layer_ids=[4, 3, 1]),
        "target_layer_ids is [4, 3, 1], not layer numbers in ascending order of a model with 8",
    ),
    "z-lab, layer beyond the model": (
        own(target_layer_ids=[1, 3, 7]),
        "target_layer_ids is [1, 3, 7], not layer numbers in ascending order of a model with 8",
    ),
    "z-lab, layers as text": (own(target_layer_ids="1,3,4"), "target_layer_ids: '1,3,4' is not accepted"),
    "z-lab, no mask": (own(mask_token_id=None), "config.json: mask_token_id: {"),
    "z-lab, mask beyond the vocabulary": (own(mask_token_id=96), "mask_token_id is 96 but the tokens are 0 to 95"),
    "z-lab, no block": (lab().configured(block_size=None), "config.json: block_size: {"),
    "z-lab, block of the root alone": (
        lab().configured(block_size=1),
        "block_size is 1, for 0 guesses; only heads with 1 to 16 can be imported",
    ),
    "z-lab, block too long": (
        lab().configured(block_size=18),
        "block_size is 18, for 17 guesses; only heads with 1 to 16 can be imported",
    ),
    "z-lab, two blocks": (own(block_size=8), "dflash_config.block_size is 8 and block_size is 6"),
    "z-lab, no object": (lab().configured(dflash_config=[1]), "dflash_config is [1], not a JSON object"),
    "z-lab, unknown nested field": (own(**{"twice\n": True}), "'twice\\n' is True, and this importer does not know"),
    "z-lab, scaled output": (own(output_multiplier=0.5), "output_multiplier is 0.5; only heads with 1 can be"),
    "z-lab, capped logits": (
        own(final_logit_softcapping=30.0),
        "final_logit_softcapping is 30.0; only heads with None",
    ),
    "z-lab, causal blocks": (lab().configured(is_causal=True), "is_causal is True; only heads with False"),
    "z-lab, sliding layers": (
        lab().configured(layer_types=["sliding_attention", "full_attention"]),
        "layer_types is ['sliding_attention', 'full_attention']; only heads with full attention",
    ),
    "z-lab, other activation": (lab().configured(hidden_act="gelu"), "hidden_act is 'gelu'; only heads with 'silu'"),
    "z-lab, table for output": (
        lab(own_embeddings=True),
        "tie_word_embeddings is True; heads that share one table can't be imported",
    ),
    "z-lab, positions by length": (
        lab().configured(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "rope_scaling.rope_type is 'dynamic'; only default, linear, llama3, yarn can be imported",
    ),
    "z-lab, wider than the model": (
        lab().configured(target_hidden_size=48),
        "target_hidden_size is 48 but hidden_size 32; only heads as wide as the model can be imported",
    ),
    "z-lab, heads that do not fit": (
        lab().configured(num_key_value_heads=3),
        "num_attention_heads is 4, which does not fit num_key_value_heads 3",
    ),
    "DeepSpec, gated bias": (
        deep().configured(markov_head_type="gated"),
        "markov_head_type is 'gated'; only heads with 'vanilla' can be imported",
    ),
    "DeepSpec, recurrent bias": (
        deep().configured(markov_head_type="rnn"),
        "markov_head_type is 'rnn'; only heads with 'vanilla' can be imported",
    ),
    "DeepSpec, half of the bias": (deep().without(W2), f"'{W2}' is missing"),
    "DeepSpec, bias of another rank": (
        deep().configured(markov_rank=7),
        f"'{W1}' has shape [96, 6] instead of [96, 7]",
    ),
    "DeepSpec, bias that nothing names": (
        deep(confidence="").configured(markov_rank=0),
        f"tensors '{W1}', '{W2}' should not be there",
    ),
    "DeepSpec, estimate missing": (
        deep().without("confidence_head.proj.bias"),
        "'confidence_head.proj.bias' is missing",
    ),
    "DeepSpec, estimate by the state alone": (
        deep(confidence="state").configured(confidence_head_with_markov=True),
        "'confidence_head.proj.weight' has shape [1, 32] instead of [1, 38]",
    ),
    "DeepSpec, estimate by a bias that is not there": (
        deep(rank=0, confidence="state").configured(confidence_head_with_markov=True),
        "confidence_head_with_markov is True but markov_rank is 0",
    ),
    "DeepSpec, output of other size": (
        deep(own_output=True).changed(lm_head__weight=torch.ones(VOCAB - 1, HIDDEN)),
        "tensor 'd2t' is missing",
    ),
    "DeepSpec, before the embeddings": (
        deep().configured(target_layer_ids=[-2, 1, 3]),
        "target_layer_ids is [-2, 1, 3], not a list of layer numbers",
    ),
    "speculators, another kind": (
        spec().configured(speculators_model_type="dflash2"),
        "speculators_model_type is 'dflash2'; of heads with a block only 'dflash' or 'dspark' can be imported",
    ),
    "speculators, no kind": (
        spec().configured(speculators_model_type=["dflash"]),
        "speculators_model_type is ['dflash']; of heads with a block only",
    ),
    "speculators, layers counted otherwise": (
        spec().configured(target_layer_ids=[1, 3, 4]),
        "'target_layer_ids' is [1, 3, 4], and this importer does not know the field",
    ),
    "speculators, offsets missing": (spec().without("d2t"), "tensor 'd2t' is missing"),
    "speculators, mask disagrees": (
        spec().changed(t2d=torch.zeros(VOCAB, dtype=torch.bool)),
        "tensors 't2d' and 'd2t' disagree on the draft vocabulary",
    ),
    "speculators, layer as text": (
        spec().configured(transformer_layer_config="qwen3"),
        "transformer_layer_config is 'qwen3', not a JSON object",
    ),
    "speculators, unknown nested field": (nested(residual_multiplier=0.5), "'residual_multiplier' is 0.5, and this"),
    "speculators, windowed": (nested(sliding_window=128), "sliding_window is 128; only heads with full attention"),
    "speculators, other layers": (nested(model_type="gpt_oss"), "model_type: 'gpt_oss' is not accepted"),
    "speculators, anchor as text": (
        spec().configured(sample_from_anchor="yes"),
        "sample_from_anchor: 'yes' is not accepted",
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_checkpoint_that_does_not_hold_what_it_should(case: str, tmp_path: Path) -> None:
    checkpoint, named = CASES[case]
    refused(checkpoint.save(tmp_path / "published"), named)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = lab(file="pytorch_model.bin")
    folder = checkpoint.save(tmp_path / "published")
    torch.save(checkpoint.tensors | {"norm.weight": Code()}, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin holds more than tensors, and what else it holds could run code")
    assert not (tmp_path / "ran").exists(), "code of the file was run"


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    folder = lab().save(tmp_path / "published")
    path = folder / "model.safetensors"
    save_tensors(path, lab().tensors)
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "model.safetensors can't be read")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FIELDS = (*DFlashFields.model_fields, *NEUTRAL, "architectures", "transformer_layer_config", "dflash_config")


@given(checkpoint=st.sampled_from([lab(), deep(), spec()]), field=st.sampled_from(FIELDS), value=ANY_JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(per_hundred=100))
def test_any_value_of_a_field_is_read_or_refused(
    checkpoint: DFlashCheckpoint, field: str, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    changed = checkpoint.configured(**{field: value})
    layer = changed.config.get("transformer_layer_config")
    if isinstance(layer, dict) and field in layer:
        changed = checkpoint.configured(transformer_layer_config=layer | {field: value})
    message = ""
    try:
        imported(changed.save(folder / "published"), folder / "ours")
    except EntMTPError as error:
        message = str(error)
    assert "\n" not in message
