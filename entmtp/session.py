"""A model with a decoding method, ready to answer prompts: what ``entmtp generate`` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from entmtp.decoding.engine import Completion, Engine
from entmtp.decoding.measure import step_cost
from entmtp.errors import EntMTPError
from entmtp.evaluation.arms import METHODS, Toolbox, kind_of, make_engine, make_policy
from entmtp.evaluation.suites import get_suite
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.models.backbone import Backbone
from entmtp.models.bundled import cache_folder
from entmtp.models.kernels import check_name
from entmtp.models.registry import encode_chat, load_model, resolve_model
from entmtp.scheduling.correction import CorrectingPolicy
from entmtp.scheduling.cost import MachineCost
from entmtp.scheduling.policies import Policy
from entmtp.trees.bank import bundled_bank, load_bank


@dataclass
class Session:
    """One loaded method."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    method: str
    completion: Completion

    def stream(self, prompt: str, max_new_tokens: int) -> Iterator[str]:
        """Yields the answer's text as its tokens come; never half a character."""
        if not prompt.strip():
            raise EntMTPError(f"prompt: '{prompt}' is empty; give some text")
        self.completion = Completion()
        decoder = DecodeStream(skip_special_tokens=True)
        ids = encode_chat(self.tokenizer, prompt)
        for tokens in self.engine.stream(ids, max_new_tokens, self.completion):
            pieces = (decoder.step(self.tokenizer.backend_tokenizer, token) for token in tokens)
            yield "".join(piece for piece in pieces if piece)

    def statistics(self) -> str:
        """One line about the last answer."""
        done = self.completion
        nodes = done.drafted / max(1, len(done.steps))
        return (
            f"{self.method}: {len(done.tokens)} tokens in {done.seconds:.2f} s"
            f" ({len(done.tokens) / done.seconds:.1f} tokens/s, prompt {done.prefill_seconds:.2f} s),"
            f" {len(done.steps)} steps, tau {done.tau:.2f}, {nodes:.1f} nodes per step,"
            f" {self.engine.backbone.kernels_in_words}"
        )


def open_session(
    *,
    method: str,
    task: str,
    model: str,
    heads: str | None,
    bank: Path | None,
    device: str,
    dtype: str,
    kernels: str,
    say: Callable[[str], None],
) -> Session:
    """Loads what the method needs, and only that.

    Raises:
        EntMTPError: for an unknown method, task, type or choice of kernels, heads or bank of another model, or heads
            that are nowhere.
    """
    if method not in METHODS:
        raise EntMTPError(f"method: '{method}' is unknown; choose one of {', '.join(METHODS)}")
    get_suite(task)
    chosen = check_name(kernels)
    resolve_model(model)
    kind = kind_of(method)
    if method != "autoregressive" and model != "bundled" and heads is None:
        raise EntMTPError(f"heads: none are shipped for model '{model}'; give --heads, or --method autoregressive")
    loaded, tokenizer = load_model(model, dtype=dtype, device=device)
    backbone = Backbone(loaded, chosen)
    if method == "autoregressive":
        engine = make_engine(method, Toolbox(backbone, {}, {}, {}))
    else:
        source, bank_file = heads or str(bundled_heads(kind)), bank or bundled_bank(task, kind)
        engine = _drafting_engine(method, backbone, kind, source, bank_file, say)
    return Session(engine, tokenizer, method, Completion())


def _drafting_engine(
    method: str, backbone: Backbone, kind: str, source: str, bank_file: Path, say: Callable[[str], None]
) -> Engine:
    """An engine whose trees follow what steps really cost."""
    heads = load_heads(source, backbone)
    if heads.kind != kind:
        raise EntMTPError(f"heads: {source} holds {heads.kind} heads but the method needs {kind} heads")
    bank = load_bank(bank_file)
    fingerprint = backbone.fingerprint
    bank.check_heads(
        kind=kind, num_heads=heads.num_heads, model_fingerprint=fingerprint, heads_fingerprint=heads.fingerprint
    )
    cost = step_cost(backbone, heads, cache_folder(), say)

    def policy_of(seen: MachineCost) -> Policy:
        return make_policy(method, Toolbox(backbone, {kind: heads}, {kind: bank}, {kind: seen}))

    return Engine(backbone, heads, CorrectingPolicy(policy_of, cost))
