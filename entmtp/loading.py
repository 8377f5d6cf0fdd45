"""Loading of a model with a decoding method, for ``entmtp generate`` and ``LLM``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from entmtp import methods
from entmtp.calibration.thresholds import retune
from entmtp.decoding.engine import Engine
from entmtp.decoding.measure_cost import cost_corrections, machine_cost
from entmtp.decoding.outputs import Completion
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.heads.checkpoint import bundled_heads, load_heads
from entmtp.method_spec import MethodSpec, check_heads_source, check_method, heads_source
from entmtp.methods import AUTOREGRESSIVE, LADDER, NATIVE, heads_of
from entmtp.models.backbone import Backbone
from entmtp.models.build import build_backbone
from entmtp.models.kernels.choices import parse_kernels
from entmtp.models.loading.end_of_turn import end_of_turn_ids, end_of_turn_notice, with_end_of_turn
from entmtp.models.loading.load import encode_chat, load_model, load_weights, resolve_model
from entmtp.models.round_weights import parse_weights, round_weights
from entmtp.persistent_paths import cache_folder
from entmtp.policies.base import Policy
from entmtp.policies.cost_cache import CostCorrectionFile
from entmtp.policies.online_cost import OnlineStepCost
from entmtp.policies.registry import PolicyInputs, find_policy, make_policy
from entmtp.policies.step_cost import BatchedCost
from entmtp.settings import EngineSettings, SamplingParams
from entmtp.trees.bank import TreeBank, bundled_bank, load_bank

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Session:
    """A loaded method that answers one prompt at a time."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    method: str
    completion: Completion

    def stream(self, prompt: str, params: SamplingParams) -> Iterator[str]:
        """Yield the answer's text with each step; never half a character.

        Without a chat template it goes on from the prompt's: after "the capital is" comes " Paris", with its space.
        """
        if not prompt.strip():
            raise EntMTPError(f"prompt: '{prompt}' is empty; give some text")
        self.completion = Completion()
        ids = encode_chat(self.tokenizer, prompt)
        ends = end_of_turn_ids(self.tokenizer, self.engine.backbone.vocab_size)
        continues_text = self.tokenizer.chat_template is None
        try:
            for output in self.engine.stream(ids, with_end_of_turn(params, ends), self.completion, continues_text):
                yield output.text
        finally:
            self.engine.close()

    def statistics(self) -> str:
        """Summary of the last answer, in one line."""
        done = self.completion
        nodes = done.drafted / max(1, len(done.steps))
        return (
            f"{self.method}: {len(done.tokens)} tokens in {done.seconds:.2f} s"
            f" ({len(done.tokens) / done.seconds:.1f} tokens/s, prompt {done.prefill_seconds:.2f} s),"
            f" {len(done.steps)} steps, tau {done.tau:.2f}, {nodes:.1f} nodes per step,"
            f" {self.engine.backbone.kernels_description}"
        )


def open_session(method: MethodSpec, say: Callable[[str], None], context: int | None = None) -> Session:
    """Load a method and its parts for one prompt at a time; prompt and answer may have ``context`` tokens together.

    Without a ``context`` they may have as many as :class:`~entmtp.settings.EngineSettings` says.

    Raises:
        EntMTPError: as :func:`load_method`.
    """
    engine, tokenizer = load_method(method, say, EngineSettings.for_one(context))
    return Session(engine, tokenizer, method.name, Completion())


def load_method(
    method: MethodSpec, say: Callable[[str], None], settings: EngineSettings
) -> tuple[Engine, PreTrainedTokenizerBase]:
    """Load an engine for the method, and its tokenizer.

    Raises:
        EntMTPError: for an unknown method, task, dtype or kernels, for heads or a bank of another model, or if heads
            are not found.
    """
    check_method(method)
    chosen, weights = parse_kernels(method.kernels), parse_weights(method.weights)
    resolve_model(method.model)
    check_heads_source(method)
    drafts = method.name != AUTOREGRESSIVE
    if drafts and method.model != "bundled" and find_policy(methods.policy_of(method.name)).by_bank:
        _bank_path(method, NATIVE if heads_source(method) == NATIVE else methods.get(method.name).heads)
    if weights == "own":
        loaded, tokenizer = load_weights(method.model, dtype=method.dtype, device=method.device)
        backbone = build_backbone(loaded, chosen)
    else:
        model, tokenizer = load_model(method.model, dtype=method.dtype, device=method.device)
        round_weights(model, tokenizer, weights, say)
        backbone = build_backbone(model, chosen)
    ends = end_of_turn_ids(tokenizer, backbone.vocab_size)
    if (notice := end_of_turn_notice(tokenizer, ends, backbone.eos_token_ids)) is not None:
        say(notice)
    heads = _load_heads(method, backbone) if drafts else None
    policy = policy_of(method, backbone, heads, settings, say)
    return Engine(backbone, heads, policy, settings, tokenizer.backend_tokenizer), tokenizer


def _load_heads(method: MethodSpec, backbone: Backbone) -> DraftHeads:
    source = heads_source(method) or str(bundled_heads(heads_of(method.name)))
    heads = load_heads(source, backbone)
    kind = heads_of(method.name, (heads.kind,))  # the given heads decide, unless the method is named after a kind
    if heads.kind != kind:
        raise EntMTPError(
            f"heads: {source} holds {heads.kind} heads but the method needs {kind} heads; give such, or a"
            f" method that runs with any: {', '.join(methods.adaptive())}"
        )
    return heads.draft_only()


def policy_of(
    method: MethodSpec,
    backbone: Backbone,
    heads: DraftHeads | None,
    settings: EngineSettings,
    say: Callable[[str], None],
) -> Policy:
    """Make the method's policy for as many requests as there are slots, with step costs corrected as steps run.

    A bank is needed and costs are measured only if the policy's trees depend on them. A bank that is given is checked.

    Raises:
        EntMTPError: if the method needs other heads, or the bank was made for others.
    """
    if method.name == AUTOREGRESSIVE:
        return make_policy(AUTOREGRESSIVE, PolicyInputs())
    kind = heads_of(method.name, () if heads is None else (heads.kind,))
    if heads is None or heads.kind != kind:
        loaded = "none" if heads is None else f"{heads.kind} heads"
        raise EntMTPError(f"heads: method '{method.name}' needs {kind} heads but {loaded} are loaded; load others")
    registered = find_policy(methods.policy_of(method.name))
    if not registered.by_bank and method.bank is None:
        return registered.make(PolicyInputs(heads.num_heads))
    bank = load_bank(_bank_path(method, kind))
    fingerprint = backbone.fingerprint
    bank.check_heads(
        kind=heads.kind,
        num_heads=heads.num_heads,
        model_fingerprint=fingerprint,
        heads_fingerprint=heads.fingerprint,
        estimates_acceptance=heads.estimates_acceptance,
    )
    if not registered.by_cost:
        return registered.make(PolicyInputs(heads.num_heads, bank))
    cost = machine_cost(backbone, heads, cache_folder(), say, settings.slots, settings.context)
    return policy_at_costs(method.name, heads, bank, cost, say, cost_corrections(backbone, heads, cache_folder()))


def policy_at_costs(
    name: str,
    heads: DraftHeads,
    bank: TreeBank,
    cost: BatchedCost,
    say: Callable[[str], None],
    learnt: CostCorrectionFile | None = None,
) -> Policy:
    """Make the policy of a method that drafts from the machine's step costs, which are corrected as steps run.

    The policy starts from the corrections of earlier runs in ``learnt`` and adds its own.
    """
    policy = methods.policy_of(name)
    if policy == LADDER:
        bank = retune(bank, cost.table(1), say)
    return make_policy(policy, PolicyInputs(heads.num_heads, bank, OnlineStepCost(cost, learnt)))


def _bank_path(method: MethodSpec, kind: str | None) -> Path:
    """Path of the method's bank for heads of a ``kind``; None if the kind is not known yet.

    Raises:
        EntMTPError: if none is given or shipped. Banks are shipped for the bundled model's trained heads only.
    """
    shipped = bundled_bank(method.task, kind or "")
    if method.bank is not None or (method.model == "bundled" and shipped.is_file()):
        return method.bank or shipped
    whose = f"{kind} heads of model" if kind else "model"
    heads = f"{kind or 'KIND'}={NATIVE if kind == NATIVE else 'FOLDER'}"
    raise EntMTPError(
        f"bank: none is shipped for {whose} '{method.model}'; make one with 'entmtp calibrate --task {method.task}"
        f" --model {method.model} --heads {heads} --output banks' and give it as --bank"
    )
