"""Arms take turns and are held to one text; the texts here come from functions that need no model."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.peers.arms import REFERENCE, Arm, Referee, ScoredSuite, Written, generate_arms, measure, own_arm
from entmtp.errors import EntMTPError
from entmtp.models.build import build_backbone
from entmtp.policies.static import StaticPolicy
from entmtp.trees.topology import Topology
from tests.helpers.small_cases import single_engine
from tests.helpers.tiny_models import random_tokens, tiny_model

TEXT = [5, 6, 7, 8]


class Model:
    """Its best two tokens are 7 and 9, ``margin`` apart, whatever came before."""

    device = torch.device("cpu")

    def __init__(self, margin: float) -> None:
        self.logits = torch.zeros(1, 1, 12)
        self.logits[0, 0, 7], self.logits[0, 0, 9] = 1.0 + margin, 1.0

    def __call__(self, ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.logits.expand(1, ids.shape[1], 12))


def writes(text: list[int], seconds: float = 1.0, order: list[str] | None = None, name: str = "") -> Arm:
    def write(prompt: list[int], new_tokens: int) -> Written:
        if order is not None:
            order.append(name)
        return Written(text[:new_tokens], seconds)

    return write


def run(other: Arm, said: list[str], margin: float = 1.0, free: frozenset[str] = frozenset()) -> list[Any]:
    suites = [ScoredSuite("suite", "suite (sample)", [[1, 2], [3]])]
    referee = Referee(Model(margin), free, said.append)
    return measure(suites, {"suite": {REFERENCE: writes(TEXT), "other": other}}, 4, 2, referee, lambda what: None)


def test_every_arm_writes_every_prompt_as_often_and_in_rotating_order() -> None:
    order: list[str] = []
    arms = {name: writes(TEXT, order=order, name=name) for name in (REFERENCE, "b", "c")}
    suites = [ScoredSuite("s", "s", [[1], [2]])]
    rows = measure(suites, {"s": arms}, 4, 3, Referee(Model(1.0), frozenset(), print), lambda what: None)
    assert len(rows) == 2 * 3 * 3
    assert {(row.arm, row.prompt) for row in rows} == {(name, prompt) for name in arms for prompt in (0, 1)}
    turns = [tuple(row.arm for row in rows[at : at + 3]) for at in range(0, len(rows), 3)]
    assert len(set(turns[:3])) == 3
    assert {turn[0] for turn in turns[:3]} == set(arms)
    assert len(order) == len(rows) + 2 * (1 + 3)  # per prompt the reference and a warm-up of each arm


def test_an_arm_that_must_be_exact_and_is_not_is_an_error() -> None:
    with pytest.raises(EntMTPError, match=r"other: new token 2 .* differs"):
        run(writes([5, 6, 9, 8]), [])
    with pytest.raises(EntMTPError, match=r"other: new token 3 .* differs"):
        run(writes(TEXT[:3]), [])


def test_a_tie_of_the_two_best_tokens_is_told_once_per_prompt() -> None:
    said: list[str] = []
    rows = run(writes([5, 6, 9, 8]), said, margin=1e-5)
    assert len(said) == 2
    assert all("tie" in line for line in said)
    assert [row.identical for row in rows if row.arm == "other"] == [False] * 4
    with pytest.raises(EntMTPError, match="differs"):
        run(writes([5, 6, 4, 8]), said, margin=1e-5)  # 4 is not one of the two


def test_a_free_arm_may_write_another_text_and_its_time_is_for_as_many_tokens() -> None:
    rows = run(writes([4, 4], seconds=3.0), [], free=frozenset({"other"}))
    assert {(row.identical, row.seconds, row.tokens) for row in rows if row.arm == "other"} == {(False, 6.0, 4)}


def test_our_loop_and_every_kind_of_generate_write_one_text() -> None:
    model = tiny_model("llama")
    prompt = random_tokens(9)
    engine = single_engine(build_backbone(model), None, StaticPolicy(Topology.root_only(), entropy_window=8))
    ours = own_arm(engine)(prompt, 7)
    assert ours.steps == 7
    assert len(ours.tokens) == 7
    for arm in generate_arms(model).values():
        assert arm(prompt, 7).tokens == ours.tokens
