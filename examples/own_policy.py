"""Write a policy: draft a chain of two tokens where the model was sure of its last choice, and nothing elsewhere.

A policy never changes the text, only the number of steps.
"""

from entmtp.decoding.engine import Engine
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.models.build import build_backbone
from entmtp.models.loading.load import encode_chat, load_model
from entmtp.policies.base import RequestPolicy
from entmtp.policies.signals import Signals
from entmtp.settings import EngineSettings
from entmtp.trees.topology import Topology


class SurePolicy(RequestPolicy):
    """A chain while the entropy of the model's last choice is below a threshold, in nats."""

    entropy_window = 8
    max_nodes = 2

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.chain = Topology.of([(0,), (0, 0)])

    def choose_one(self, signals: Signals, state: None, limit: int) -> Topology:
        tree = self.chain if signals.entropy < self.threshold else Topology.root_only()
        return tree.truncated(limit)


model, tokenizer = load_model("bundled")
backbone = build_backbone(model)
engine = Engine(backbone, load_heads(bundled_heads("hydra"), backbone), SurePolicy(0.5), EngineSettings.for_one())
answer = engine.generate(encode_chat(tokenizer, "What is a prime number?"), 48)
print(tokenizer.decode(answer.tokens, skip_special_tokens=True))
print(f"{answer.tau:.2f} tokens per step, {answer.drafted / len(answer.steps):.2f} drafted")
