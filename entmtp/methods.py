"""Decoding methods: one table of all that benchmarks compare and services offer.

A method is a family of draft heads with a policy. The order, the colours and the descriptions of methods come from this
table, so that a new method is one new line. Its policy is registered under a name (:mod:`entmtp.policies.registry`).
This module imports nothing heavy, since the command line's help is made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Literal

from entmtp.errors import EntMTPError

AUTOREGRESSIVE = "autoregressive"
ENTMTP = "entmtp"
BANK_ORACLE = "bank-oracle"
HINDSIGHT = "hindsight"
RANDOM = "random"

HYDRA, NATIVE, MEDUSA, EAGLE3, DFLASH = "hydra", "native", "medusa", "eagle3", "dflash"
FAMILIES = (EAGLE3, HYDRA, DFLASH, NATIVE, MEDUSA)
"""Families of draft heads, in the order of preference of methods that name none."""

LADDER = "ladder"
"""The paper's policy; its thresholds are tuned again on the machine where it runs."""

OTHER_COLOUR = "#882255"

Role = Literal["method", "foreign-bank", "control", "yardstick"]


@dataclass(frozen=True)
class Method:
    """Method of :data:`TABLE`.

    Attributes:
        policy: name in :mod:`entmtp.policies.registry`; None if a benchmark builds it from another run.
        colour: colour in figures, of the palettes of Okabe and Ito, and of Tol, which are safe for colour blindness.
        description: text for pages and help, without a full stop.
        heads: family of draft heads; None runs with any.
        role: a 'method' is offered to users. Only benchmarks run the others: methods with the bank of another suite,
            controls, and yardsticks that know the text beforehand.
        adaptive: whether it chooses trees by the text, with the suite's own bank.
        lossy: whether it accepts tokens that the model did not choose.
        quick: whether it is part of the short benchmark.
    """

    name: str
    policy: str | None
    colour: str
    description: str
    heads: str | None = None
    role: Role = "method"
    adaptive: bool = False
    lossy: bool = False
    quick: bool = False


TABLE: list[Method] = [
    Method(AUTOREGRESSIVE, "autoregressive", "#7f7f7f", "plain decoding, one token per step", quick=True),
    Method("medusa", "published", "#56B4E9", "Medusa heads, the published tree of 63 nodes", MEDUSA, quick=True),
    Method("medusa-best", "best-static", "#0072B2", "Medusa heads, the best constant tree", MEDUSA),
    Method("hydra", "published", "#E69F00", "Hydra heads, the published tree of 63 nodes", HYDRA, quick=True),
    Method("hydra-best", "best-static", "#D55E00", "Hydra heads, the best constant tree", HYDRA, quick=True),
    Method("native", "published", "#88CCEE", "the model's own MTP layers, the published tree", NATIVE),
    Method("native-best", "best-static", "#AA4499", "the model's own MTP layers, the best constant tree", NATIVE),
    Method("eagle3", "eagle2", "#FFAABB", "EAGLE-3 heads, EAGLE-2's tree of 59 nodes", EAGLE3, quick=True),
    Method("eagle3-best", "best-static", "#994455", "EAGLE-3 heads, the best constant tree", EAGLE3, quick=True),
    Method("dflash", "chain", "#EE3377", "DFlash or DSpark heads, their authors' chain", DFLASH),
    Method("dflash-best", "best-static", "#CC3311", "DFlash or DSpark heads, the best constant tree", DFLASH),
    Method(ENTMTP, LADDER, "#009E73", "a tree per step by the entropy's moving average", adaptive=True, quick=True),
    Method(
        "entmtp-goodput", "goodput", "#117733", "most predicted tokens, less the price of their time", adaptive=True
    ),
    Method("entmtp-dynamic", "dynamic", "#44AA99", "expanded while the heads draft", adaptive=True, quick=True),
    Method("entmtp-transfer", "dynamic", "#DDCC77", "entmtp-dynamic with another suite's bank", role="foreign-bank"),
    Method("entmtp-mixed", "dynamic", "#661100", "entmtp-dynamic with one bank for all suites", role="foreign-bank"),
    Method("always-big", "always-big", "#332288", "the bank's largest tree at every step", role="control"),
    Method(RANDOM, None, "#CC79A7", "entmtp-dynamic's trees in random order", role="control"),
    Method(BANK_ORACLE, BANK_ORACLE, "#999933", "knows the text: the bank's best tree at each step", role="yardstick"),
    Method(HINDSIGHT, HINDSIGHT, "#F0E442", "knows the text: verifies only the right path", role="yardstick"),
    Method("medusa-typical", "published", OTHER_COLOUR, "Medusa's lossy acceptance", MEDUSA, "control", lossy=True),
]
"""All methods, in the order of tables, figures and help."""


def names(accept: Callable[[Method], bool] = lambda method: True) -> tuple[str, ...]:
    """List the names of the methods that ``accept`` selects, in the order of the table."""
    return tuple(method.name for method in TABLE if accept(method))


def find(name: str) -> Method | None:
    """Return the method of that name, if there is one."""
    return next((method for method in TABLE if method.name == name), None)


def policy_of(name: str) -> str:
    """Return the policy's name of a method that has one."""
    policy = get(name).policy
    assert policy is not None
    return policy


def get(name: str) -> Method:
    """Return the method of that name. Raises EntMTPError if it is not offered to users."""
    if (method := find(name)) is None or method.role != "method":
        raise EntMTPError(f"method: '{name}' is unknown; choose one of {', '.join(offered())}")
    return method


def get_arm(name: str) -> Method:
    """Return the method, control or yardstick of that name. Raises EntMTPError if there is none."""
    if (method := find(name)) is None:
        raise EntMTPError(f"arm: '{name}' is unknown; choose from {', '.join(names())}")
    return method


def offered() -> tuple[str, ...]:
    """List the methods that users may choose."""
    return names(lambda method: method.role == "method")


def policies(families: Container[str] = FAMILIES) -> tuple[str, ...]:
    """List the policies of methods and yardsticks that run with heads of ``families`` or with any, each once."""
    offered = (method for method in TABLE if method.role in ("method", "yardstick"))
    chosen = (method.policy for method in offered if method.heads is None or method.heads in families)
    return tuple(dict.fromkeys(policy for policy in chosen if policy is not None))


def adaptive() -> tuple[str, ...]:
    """List the methods that choose their trees by the text."""
    return names(lambda method: method.adaptive)


def lossy() -> tuple[str, ...]:
    """List the methods whose text is not the model's own."""
    return names(lambda method: method.lossy)


def yardsticks() -> tuple[str, ...]:
    """List the methods that know the text beforehand: the bank's best tree at each step, and only the right path."""
    return names(lambda method: method.role == "yardstick")


def foreign_banks() -> tuple[str, ...]:
    """List the methods that use the bank of another suite, or one bank for all."""
    return names(lambda method: method.role == "foreign-bank")


def of_family(family: str) -> tuple[str, ...]:
    """List the methods that run with heads of that family alone."""
    return names(lambda method: method.heads == family and method.role == "method")


def of_trained_heads() -> tuple[str, ...]:
    """List the lossless methods and controls that run with heads trained for the model."""
    return names(lambda method: method.heads != NATIVE and not method.lossy)


def of_constant_trees() -> tuple[str, ...]:
    """List the lossless methods and controls that use the same tree at every step."""
    fixed = names(lambda method: method.role in ("method", "control") and method.policy is not None)
    return tuple(name for name in fixed if name not in (*adaptive(), *lossy()))


def order(name: str) -> tuple[int, str]:
    """Sort key of a method: the order of the table, then unknown methods by name."""
    known = names()
    return (known.index(name) if name in known else len(known), name)


def colour(name: str) -> str:
    """Return the colour of a method in every figure."""
    method = find(name)
    return OTHER_COLOUR if method is None else method.colour


def heads_of(name: str, loaded: Container[str] = ()) -> str:
    """Return the family of heads of a method: its own, else the first of :data:`FAMILIES` that is ``loaded``.

    If none is loaded, it is the first family.
    """
    method = find(name)
    if method is not None and method.heads is not None:
        return method.heads
    return next((family for family in FAMILIES if family in loaded), FAMILIES[0])


def check_arms(given: Sequence[str]) -> list[str]:
    """Sort the ``given`` arms in the order of the table, without duplicates. Raises EntMTPError for an unknown one."""
    return sorted({get_arm(name).name for name in given}, key=order)
