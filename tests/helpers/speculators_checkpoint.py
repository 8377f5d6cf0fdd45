"""Writes an EAGLE-3 checkpoint with the package `speculators`, and the logits that the package computes with it.

    python speculators_checkpoint.py FOLDER '{"model_type": "llama", "num_hidden_layers": 1, "fc_norm": true, ...}'

It runs in an environment of its own, which has that package. Next to the checkpoint, ``expected.safetensors`` has
random ``features [tokens - 1, width]`` and ``tokens [tokens]``, and ``logits [steps, tokens - 1, draft vocabulary]``.
Those of step j at row i are for token i + j + 2, given the true tokens and the features of the first i + 1.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from speculators import SpeculatorsConfig, VerifierConfig  # type: ignore[import-not-found]
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig  # type: ignore[import-not-found]
from speculators.proposals.greedy import GreedyTokenProposalConfig  # type: ignore[import-not-found]
from transformers import AutoConfig

STEPS, TOKENS, VOCAB, HIDDEN = 5, 24, 96, 32


def main(folder: Path, variant: dict[str, object]) -> None:
    """Write both files."""
    torch.manual_seed(0)
    layer = AutoConfig.for_model(
        str(variant.pop("model_type")),
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=variant.pop("num_hidden_layers", 1),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    layer._attn_implementation = "eager"
    proposal = GreedyTokenProposalConfig(speculative_tokens=STEPS)
    verifier = VerifierConfig(name_or_path="verifier", architectures=["LlamaForCausalLM"])
    own = SpeculatorsConfig(
        algorithm="eagle3", proposal_methods=[proposal], default_proposal_method="greedy", verifier=verifier
    )
    config = Eagle3SpeculatorConfig(transformer_layer_config=layer, speculators_config=own, **variant)
    model = Eagle3DraftModel(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name else 0.0
            weight.normal_(mean, 0.2)
    if config.draft_vocab_size != VOCAB:
        guessable = torch.randperm(VOCAB)[: config.draft_vocab_size].sort().values
        t2d = torch.zeros(VOCAB, dtype=torch.bool)
        t2d[guessable] = True
        model.load_vocab_mappings(t2d, guessable - torch.arange(len(guessable)))
    model.save_pretrained(folder)
    tokens, features = torch.randint(VOCAB, (TOKENS,)), torch.randn(TOKENS - 1, model.fc.in_features)
    logits: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: logits.append(output[0]))
    documents = torch.zeros(1, TOKENS - 1, dtype=torch.long)
    with torch.no_grad():
        model(features[None], tokens[None, 1:], documents, ttt_steps=STEPS)
    expected = {"tokens": tokens, "features": features, "logits": torch.stack(logits)}
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
