"""Writes a DFlash or DSpark checkpoint with the package `speculators`, and the logits that the package computes.

    python speculators_blocks.py FOLDER '{"kind": "dflash", "block_size": 6, "aux_hidden_state_layer_ids": [2, 4], ...}'

It runs in an environment of its own, which has that package. Next to the checkpoint, ``expected.safetensors`` has
random ``features [tokens, width]`` and ``tokens [tokens]``, the ``embeddings`` and the ``output`` layer of the model,
and ``logits [anchors, block, draft vocabulary]`` of the blocks after ``anchors``, given the true tokens.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from speculators import SpeculatorsConfig, VerifierConfig  # type: ignore[import-not-found]
from speculators.models.dflash import DFlashDraftModel, DFlashSpeculatorConfig  # type: ignore[import-not-found]
from speculators.models.dspark import DSparkDraftModel, DSparkSpeculatorConfig  # type: ignore[import-not-found]
from speculators.proposals.greedy import GreedyTokenProposalConfig  # type: ignore[import-not-found]
from transformers import AutoConfig

ANCHORS, TOKENS, VOCAB, HIDDEN, MASK = 6, 24, 96, 32, 7
KINDS = {
    "dflash": (DFlashDraftModel, DFlashSpeculatorConfig),
    "dspark": (DSparkDraftModel, DSparkSpeculatorConfig),
}


def main(folder: Path, variant: dict[str, object]) -> None:
    """Write both files."""
    torch.manual_seed(0)
    kind = str(variant.pop("kind"))
    model_class, config_class = KINDS[kind]
    layer = AutoConfig.for_model(
        "qwen3",
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=variant.pop("num_hidden_layers", 2),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    layer._attn_implementation = "eager"
    proposal = GreedyTokenProposalConfig(speculative_tokens=4)
    verifier = VerifierConfig(name_or_path="verifier", architectures=["LlamaForCausalLM"])
    own = SpeculatorsConfig(
        algorithm=kind, proposal_methods=[proposal], default_proposal_method="greedy", verifier=verifier
    )
    config = config_class(transformer_layer_config=layer, speculators_config=own, mask_token_id=MASK, **variant)
    model = model_class(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    if config.draft_vocab_size != VOCAB:
        guessable = torch.randperm(VOCAB)[: config.draft_vocab_size].sort().values
        t2d = torch.zeros(VOCAB, dtype=torch.bool)
        t2d[guessable] = True
        model.load_vocab_mappings(t2d, guessable - torch.arange(len(guessable)))
    model.save_pretrained(folder)
    tokens, features = torch.randint(VOCAB, (TOKENS,)), torch.randn(TOKENS, model.fc.in_features)
    expected = {"tokens": tokens, "features": features} | _blocks(model, tokens, features)
    expected["embeddings"] = model.embed_tokens.weight.detach().clone()
    expected["output"] = model.lm_head.weight.detach().clone()
    save_file({name: each.contiguous() for name, each in expected.items()}, folder / "expected.safetensors")


@torch.no_grad()
def _blocks(model: Any, tokens: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """The anchors that the package chose, and its logits of their blocks, before or after DSpark's bias."""
    found: dict[str, torch.Tensor] = {}
    chosen = model._build_attention_mask

    def build(*args: object, **kwargs: object) -> object:
        masks = chosen(*args, **kwargs)
        found["anchors"] = masks[2].clone()
        return masks

    model._build_attention_mask = build
    hidden, logits, *_, indices = model._backbone_forward(
        features[None],
        tokens[None],
        torch.ones(1, TOKENS),
        torch.zeros(1, TOKENS, HIDDEN),
        torch.zeros(1, TOKENS, dtype=torch.long),
        max_anchors=ANCHORS,
    )
    block = model.block_size
    logits = logits.view(ANCHORS, block, -1)
    if (markov := getattr(model, "markov_head", None)) is not None:
        true = tokens[indices].view(ANCHORS, block)
        first = true if model.config.sample_from_anchor else torch.cat([true[:, :1], true[:, :-1]], dim=1)
        logits = logits + markov.block_bias(prev_token_ids=first, hidden_states=hidden.view(ANCHORS, block, -1))
    return found | {"logits": logits}


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
