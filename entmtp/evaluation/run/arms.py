"""The benchmark's arms: which heads and which policy each method is."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer

from entmtp.calibration.replay import bank_oracle, hindsight
from entmtp.decoding.completion import Completion
from entmtp.decoding.engine import Engine
from entmtp.errors import EntMTPError
from entmtp.evaluation.analysis.summary import BANK_ORACLE, HINDSIGHT, LOSSY, YARDSTICKS
from entmtp.heads.base import DraftHeads
from entmtp.heads.native.heads import NATIVE
from entmtp.models.backbone import Backbone
from entmtp.policies.base import (
    Policy,
    SequencePolicy,
    StaticPolicy,
    best_static_policy,
    ladder_policy,
)
from entmtp.policies.correction import CorrectingPolicy
from entmtp.policies.cost_cache import LearntCosts
from entmtp.policies.dynamic import DynamicPolicy
from entmtp.policies.goodput import GoodputPolicy
from entmtp.policies.step_cost import MachineCost, PolicyCost
from entmtp.settings import (
    PAPER_TEMPERATURE,
    Acceptance,
    CalibrationSettings,
    EngineSettings,
    LadderSettings,
    SamplingParams,
)
from entmtp.suites.speed_bench import FAMILIES as SPEED_BENCH_FAMILIES
from entmtp.trees.bank import TreeBank
from entmtp.trees.published import published_tree
from entmtp.trees.topology import Topology
from entmtp.trees.trace import RankTrace

LADDER = "ladder"
"""The paper's policy, whose bank is tuned again at this machine's costs (:mod:`entmtp.calibration.thresholds`)."""

POLICY_OF = {
    "autoregressive": "autoregressive",
    "medusa": "published",
    "hydra": "published",
    "medusa-best": "best-static",
    "hydra-best": "best-static",
    "entmtp": LADDER,
    "entmtp-goodput": "goodput",
    "entmtp-dynamic": "dynamic",
    "native": "published",
    "native-best": "best-static",
}
"""How each method chooses its trees, whatever its heads; the names are those of ``entmtp replay``."""
METHODS = tuple(POLICY_OF)
OF_NATIVE = ("native", "native-best")
"""Need a model with multi-token-prediction layers of its own."""
KINDS = ("hydra", NATIVE, "medusa")
"""Kinds of heads, in the order in which arms that are named after none prefer them."""
CONTROLS = ("always-big", "random", *YARDSTICKS)
FOREIGN_BANKS = ("entmtp-transfer", "entmtp-mixed")
"""Controls that choose by the bank of another suite, or by one bank for all."""

OF_TRAINED = tuple(name for name in METHODS if name not in OF_NATIVE)
LOSSLESS = (*OF_TRAINED, *FOREIGN_BANKS, *CONTROLS)
ARMS = (*LOSSLESS, *LOSSY)
"""Of trained heads; with native ones alone, those named after trained ones give way to :data:`OF_NATIVE`."""
QUICK_ARMS = ("autoregressive", "medusa", "hydra", "hydra-best", "entmtp", "entmtp-dynamic")
"""The question itself, for minutes: plain decoding, the published methods, the best static tree, and EntMTP."""
DEFAULT_ARMS = (*OF_TRAINED, *CONTROLS)
"""What runs where nothing else is asked for; banks of other suites are a question for a study."""

UNPRICED = frozenset(
    {*(name for name, policy in POLICY_OF.items() if policy in ("autoregressive", "published")), "always-big", *LOSSY}
)
"""Arms whose trees are the same whatever a step costs."""
NEEDS_FORESIGHT = frozenset({"random", *YARDSTICKS})
TRANSFER = {
    "humaneval": "litbench",
    "gsm8k": "sharegpt",
    "sharegpt": "gsm8k",
    "litbench": "humaneval",
    "math500": "sharegpt",
    "mbpp": "litbench",
    **dict.fromkeys(("mt-bench", "spec-bench", *SPEED_BENCH_FAMILIES, "custom"), "humaneval"),
}
"""Whose bank ``entmtp-transfer`` uses on a family of suites: one of quite another kind of text."""


@dataclass(frozen=True)
class Toolbox:
    """What arms are made of for one suite.

    Attributes:
        heads, banks, costs: by kind of heads; the banks are the suite's, the costs this machine's.
        foreign: the banks that each arm of :data:`FOREIGN_BANKS` uses instead, by kind of heads.
        tokenizer: for suites whose answers end at a text; the others need none.
    """

    backbone: Backbone
    heads: Mapping[str, DraftHeads]
    banks: Mapping[str, TreeBank]
    costs: Mapping[str, PolicyCost]
    foreign: Mapping[str, Mapping[str, TreeBank]] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None

    def with_banks_of(self, arm: str) -> Toolbox:
        """The same with the banks that the arm chooses by."""
        return replace(self, banks=self.foreign[arm]) if arm in FOREIGN_BANKS else self


@dataclass(frozen=True)
class Foresight:
    """What the controls know of a prompt beforehand: its rank trace, and the dynamic policy's own run on it."""

    trace: RankTrace
    dynamic_run: Completion
    seed: str


def check_arms(names: list[str]) -> list[str]:
    """Raises EntMTPError for an unknown arm; returns ``names`` in the canonical order, each once."""
    known = (*ARMS, *OF_NATIVE)
    for name in names:
        if name not in known:
            raise EntMTPError(f"arm: '{name}' is unknown; choose from {', '.join(known)}")
    return [name for name in known if name in names]


def with_native(arms: Sequence[str]) -> list[str]:
    """``arms`` as they are where native heads alone are loaded."""
    return [*(name for name in arms if not name.startswith(("medusa", "hydra"))), *OF_NATIVE]


def check_acceptance(names: Sequence[str], acceptance: Acceptance) -> None:
    """Raises EntMTPError for an arm that knows beforehand the text which typical acceptance would leave."""
    if acceptance == "typical" and (wrong := [name for name in names if name in NEEDS_FORESIGHT]):
        raise EntMTPError(
            f"arm: '{wrong[0]}' follows the model's own text, which typical acceptance does not write;"
            " leave it out, or use a lossless profile"
        )


def make_engine(
    arm: str, tools: Toolbox, foresight: Foresight | None = None, settings: EngineSettings | None = None
) -> Engine:
    """The engine of an arm, with ``settings`` as :class:`Engine` takes them; the controls need the ``foresight``."""
    heads = None if arm == "autoregressive" else tools.heads[kind_of(arm, tools.heads)]
    return Engine(tools.backbone, heads, make_policy(arm, tools, foresight), settings, tools.tokenizer)


def params_of(arm: str, params: SamplingParams) -> SamplingParams:
    """How an arm's text is drawn where a benchmark draws by ``params``.

    Plain decoding has no guesses to accept, so it always draws from the model's own distribution. Medusa's rule needs a
    temperature: where texts are greedy, ``medusa-typical`` takes the one that Medusa was published with.
    """
    if arm in LOSSY:
        temperature = params.temperature or PAPER_TEMPERATURE
        return params.model_copy(update={"acceptance": "typical", "temperature": temperature})
    return params.model_copy(update={"acceptance": "rejection"}) if arm == "autoregressive" else params


def kind_of(arm: str, loaded: Container[str] = ()) -> str:
    """The kind of heads that an arm drafts with, if it drafts: its name's, else the first of :data:`KINDS` ``loaded``.

    Where none are loaded it is the first of them all.
    """
    own = arm.partition("-")[0]
    return own if own in KINDS else next((kind for kind in KINDS if kind in loaded), KINDS[0])


def make_policy(arm: str, tools: Toolbox, foresight: Foresight | None = None) -> Policy:
    """The policy of an arm, as in :func:`make_engine`."""
    return _POLICIES[arm](kind_of(arm, tools.heads), tools.with_banks_of(arm), foresight)


def make_correcting_policy(arm: str, tools: Toolbox, machine: MachineCost, learnt: LearntCosts | None = None) -> Policy:
    """The policy of an arm that drafts, by this machine's costs as its steps correct them; ``tools`` need none.

    ``learnt`` are the corrections of earlier runs, which this one goes on from and adds to.
    """
    kind = kind_of(arm, tools.heads)
    return CorrectingPolicy(lambda seen: make_policy(arm, replace(tools, costs={kind: seen})), machine, learnt)


def _window(tools: Toolbox) -> int:
    """Every arm averages entropy over the same window; plain decoding alone needs no bank to say which."""
    return next((bank.entropy_window for bank in tools.banks.values()), CalibrationSettings().entropy_window)


def _autoregressive(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    return StaticPolicy(Topology.root_only(), _window(tools))


def _published(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    return StaticPolicy(published_tree(tools.heads[kind].num_heads), _window(tools))


def _best_static(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    return best_static_policy(tools.banks[kind], tools.costs[kind], _window(tools))


def _ladder(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    return ladder_policy(tools.banks[kind], tools.costs[kind], LadderSettings().hysteresis)


def _goodput(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    return GoodputPolicy(tools.banks[kind].predictor, tools.costs[kind].of_batch, _window(tools))


def _dynamic(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    bank = tools.banks[kind]
    return DynamicPolicy(bank.predictor, bank.chances, tools.costs[kind].of_batch, _window(tools))


def _always_big(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    return StaticPolicy(tools.banks[kind].overall.trees[-1], _window(tools))


def _random(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    assert foresight is not None
    trees = [step.topology for step in foresight.dynamic_run.steps]
    random.Random(foresight.seed).shuffle(trees)
    return SequencePolicy(trees, _window(tools))


def _bank_oracle(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    assert foresight is not None
    return bank_oracle(foresight.trace, tools.banks[kind], tools.costs[kind])


def _hindsight(kind: str, tools: Toolbox, foresight: Foresight | None) -> Policy:
    assert foresight is not None
    return hindsight(foresight.trace, tools.banks[kind], tools.costs[kind], tools.heads[kind].num_heads)


_POLICIES: dict[str, Callable[[str, Toolbox, Foresight | None], Policy]] = {
    "autoregressive": _autoregressive,
    "medusa": _published,
    "hydra": _published,
    "medusa-best": _best_static,
    "hydra-best": _best_static,
    "entmtp": _ladder,
    "entmtp-goodput": _goodput,
    "entmtp-dynamic": _dynamic,
    "entmtp-transfer": _dynamic,
    "entmtp-mixed": _dynamic,
    "always-big": _always_big,
    "native": _published,
    "native-best": _best_static,
    "random": _random,
    BANK_ORACLE: _bank_oracle,
    HINDSIGHT: _hindsight,
    "medusa-typical": _published,
}
