"""The benchmark's arms: methods with the heads, banks and costs of a suite, and controls with their foresight."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer

from entmtp import methods
from entmtp.decoding.engine import USUAL_NODES, Engine
from entmtp.decoding.outputs import Completion
from entmtp.decoding.state import NewCache
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies import registry
from entmtp.policies.base import Policy
from entmtp.policies.policy_cost import FixedCost
from entmtp.policies.registry import PolicyInputs
from entmtp.policies.static import SequencePolicy
from entmtp.policies.step_cost import CostTable, StepCost
from entmtp.settings import PAPER_TEMPERATURE, Acceptance, EngineSettings, SamplingParams
from entmtp.trees.bank import TreeBank
from entmtp.trees.trace import RankTrace

_TRANSFER = {
    "humaneval": "litbench",
    "gsm8k": "sharegpt",
    "sharegpt": "gsm8k",
    "math500": "sharegpt",
    "mbpp": "litbench",
}
_DEFAULT_TRANSFER = "humaneval"


@dataclass(frozen=True)
class Toolbox:
    """Model, heads, banks and costs that the arms of one suite are made from.

    Attributes:
        heads, banks, costs: by kind of heads; the banks are the suite's, the costs this machine's.
        foreign: the banks that each arm of :func:`methods.foreign_banks` uses instead, by kind of heads.
        tokenizer: for suites whose answers end at a text; the others need none.
    """

    backbone: Backbone
    heads: Mapping[str, DraftHeads]
    banks: Mapping[str, TreeBank]
    costs: Mapping[str, CostTable | StepCost]
    foreign: Mapping[str, Mapping[str, TreeBank]] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None

    def with_banks_of(self, arm: str) -> Toolbox:
        """The same toolbox with the banks that the arm uses."""
        return replace(self, banks=self.foreign[arm]) if arm in methods.foreign_banks() else self


@dataclass(frozen=True)
class Foresight:
    """A control's knowledge of a prompt before it runs: the rank trace, and the dynamic policy's run on it."""

    trace: RankTrace
    dynamic_run: Completion
    seed: str


def lossless_arms() -> tuple[str, ...]:
    """Arms of trained heads that generate the model's own text."""
    return methods.of_trained_heads()


def default_arms() -> tuple[str, ...]:
    """Arms that run by default. Those with banks of other suites run in studies only."""
    return tuple(name for name in lossless_arms() if name not in methods.foreign_banks())


def quick_arms() -> tuple[str, ...]:
    """Arms of the quick profile: plain decoding, the published methods, the best static tree, and EntMTP."""
    return methods.names(lambda method: method.quick)


def transfer_suite(family: str) -> str:
    """Suite whose bank ``entmtp-transfer`` uses for a family of suites: one with quite another kind of text."""
    return _TRANSFER.get(family, _DEFAULT_TRANSFER)


def needs_foresight(arm: str) -> bool:
    """Whether an arm is a control that needs a prompt's text, or another arm's run on it, beforehand."""
    return arm == methods.RANDOM or arm in methods.yardsticks()


def is_priced(arm: str) -> bool:
    """Whether an arm's trees depend on the step cost."""
    policy = methods.get_arm(arm).policy
    return policy is None or (registry.find_policy(policy).by_cost and arm not in methods.lossy())


def with_family(arms: Sequence[str], family: str) -> list[str]:
    """``arms`` where heads of one ``family`` alone are loaded: its methods are among them, whatever the profile."""
    runnable = with_heads(arms, [family])
    known = any(methods.get_arm(name).heads == family for name in runnable)
    return runnable if known else [*runnable, *methods.of_family(family)]


def with_heads(arms: Sequence[str], loaded: Collection[str]) -> list[str]:
    """Those of ``arms`` that run with heads of the ``loaded`` families."""
    return [arm for arm in arms if arm == methods.AUTOREGRESSIVE or methods.heads_of(arm, loaded) in loaded]


def check_acceptance(names: Sequence[str], acceptance: Acceptance) -> None:
    """Raise EntMTPError for an arm that needs the text beforehand: typical acceptance generates another text."""
    if acceptance == "typical" and (wrong := [name for name in names if needs_foresight(name)]):
        raise EntMTPError(
            f"arm: '{wrong[0]}' follows the model's own text, which typical acceptance does not write;"
            " leave it out, or use a lossless profile"
        )


def make_engine(arm: str, tools: Toolbox, settings: EngineSettings, foresight: Foresight | None = None) -> Engine:
    """The engine of an arm; the controls need the ``foresight``."""
    return engine_with(make_policy(arm, tools, foresight), drafting_kind(arm, tools), tools, settings)


def engine_with(
    policy: Policy,
    kind: str | None,
    tools: Toolbox,
    settings: EngineSettings,
    new_cache: NewCache | None = None,
    max_nodes: int = USUAL_NODES,
) -> Engine:
    """An engine with this policy and heads of this kind, or without heads; other arguments as in :class:`Engine`."""
    heads = None if kind is None else tools.heads[kind]
    return Engine(tools.backbone, heads, policy, settings, tools.tokenizer, new_cache, max_nodes)


def drafting_kind(arm: str, tools: Toolbox) -> str | None:
    """Kind of the heads that an arm drafts with; None if it drafts nothing."""
    return None if arm == methods.AUTOREGRESSIVE else methods.heads_of(arm, tools.heads)


def params_of(arm: str, params: SamplingParams) -> SamplingParams:
    """Sampling parameters of an arm in a benchmark with ``params``.

    Plain decoding drafts no tokens, so it always samples from the model's own distribution. Medusa's rule needs a
    temperature. Where texts are greedy, ``medusa-typical`` takes the temperature that Medusa was published with.
    """
    if arm in methods.lossy():
        temperature = params.temperature or PAPER_TEMPERATURE
        return params.model_copy(update={"acceptance": "typical", "temperature": temperature})
    return params.model_copy(update={"acceptance": "rejection"}) if arm == "autoregressive" else params


def make_policy(arm: str, tools: Toolbox, foresight: Foresight | None = None) -> Policy:
    """The policy of an arm, as in :func:`make_engine`."""
    tools, kind = tools.with_banks_of(arm), methods.heads_of(arm, tools.heads)
    # Every arm averages entropy over the same window. Where an arm's heads have no bank, another bank gives it.
    bank = tools.banks.get(kind) or next(iter(tools.banks.values()), None)
    inputs = PolicyInputs(
        num_heads=tools.heads[kind].num_heads if kind in tools.heads else 0,
        bank=bank,
        cost=FixedCost(tools.costs[kind].of_batch, tools.costs[kind].padded) if kind in tools.costs else None,
        trace=None if foresight is None else foresight.trace,
    )
    policy = methods.get_arm(arm).policy
    return registry.make_policy(policy, inputs) if policy is not None else _shuffled(inputs, foresight)


def _shuffled(inputs: PolicyInputs, foresight: Foresight | None) -> SequencePolicy:
    """The trees of the dynamic policy's own run, in random order."""
    assert foresight is not None
    trees = [step.topology for step in foresight.dynamic_run.steps]
    random.Random(foresight.seed).shuffle(trees)
    return SequencePolicy(trees, inputs.entropy_window)
