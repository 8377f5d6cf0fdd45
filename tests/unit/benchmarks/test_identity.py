"""Tokens that trees change are all found, each once, behind the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from benchmarks import identity
from benchmarks.identity import Case, Compared, available_cases, compare, differing, row, subject
from benchmarks.step import TYPES
from benchmarks.undrafted import PLAIN
from entmtp.decoding.engine import Engine
from entmtp.errors import EntMTPError
from entmtp.models.kernels.choices import CHOICES
from tests.helpers.tiny_models import tiny_model

CPU = torch.device("cpu")
PROMPT = [7, 8]


def writer(text: Sequence[int], wrong: set[int]) -> Callable[[list[int], int], list[int]]:
    """Writes ``text``, but a wrong token at some positions, and then something else altogether."""

    def write(prompt: list[int], count: int) -> list[int]:
        begin = len(prompt) - len(PROMPT)
        assert prompt == [*PROMPT, *text[:begin]]
        first = min((at for at in wrong if at >= begin), default=len(text))
        return [*text[begin:first], *[-1] * (len(text) - first)][:count]

    return write


@given(st.integers(1, 12), st.sets(st.integers(0, 11)))
def test_each_differing_token_is_found_once(count: int, wrong: set[int]) -> None:
    text = list(range(100, 100 + count))
    assert differing(writer(text, wrong), PROMPT, text) == sorted(at for at in wrong if at < count)


def test_a_text_that_ends_early_differs_there() -> None:
    assert differing(lambda prompt, count: [1, 2][: max(1, count - 2)], [], [1, 2, 3, 4])[0] == 2


@pytest.mark.parametrize("case", ["eager:float32", "packed:float32", "eager:bfloat16"])
def test_random_weights_are_compared_in_each_case(case: str) -> None:
    engines, prompts = subject(Case.of(case), CPU, (), "tiny", 1)
    assert list(engines) == [PLAIN, "3 nodes", "15 nodes", "63 nodes"]
    found = compare(engines, prompts, 12, case)
    assert [round(each.nodes) for each in found.values()] == [3, 15, 63]
    assert all(each.counts == [len(text) for text in texts_of(engines, prompts)] for each in found.values())
    if case.endswith("float32"):
        assert all(each.differing == [0, 0, 0, 0] and each.gap is None for each in found.values())


def texts_of(engines: dict[str, Engine], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    return [engines[PLAIN].generate(prompt, 12).tokens for prompt in prompts]


def test_the_bundled_model_is_loaded_once_for_all_cases_of_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(name: str, dtype: str, device: str) -> tuple[PreTrainedModel, None]:
        loaded.append((name, dtype, device))
        return tiny_model("llama", dtype=TYPES[dtype]), None

    monkeypatch.setattr(identity, "load_model", load)
    identity._bundled.cache_clear()
    for case in ("packed:float32", "eager:float32", "eager:float32", "eager:bfloat16"):
        identity._unrounded(Case.of(case), CPU)
    identity._bundled.cache_clear()
    assert loaded == [("bundled", "float32", "cpu"), ("bundled", "bfloat16", "cpu")]


def test_another_model_is_seen_to_differ() -> None:
    engines, prompts = subject(Case.of("eager:float32"), CPU, (), "tiny", 1)
    others, _ = subject(Case.of("eager:bfloat16"), CPU, (), "tiny", 1)
    (found,) = compare({PLAIN: engines[PLAIN], "other": others["3 nodes"]}, prompts, 32, "").values()
    assert sum(found.differing) > 0
    assert found.gap is not None
    assert 0 < found.gap < 1


def test_a_row_tells_numbers_with_their_intervals() -> None:
    case = Case.of("eager:float32")
    none = Compared([100] * 48, [0] * 48, None, 4.25)
    assert row(case, "hydra", none) == [
        *("eager", "float32", "hydra", "4.2", "48 of 48, 100% [93%, 100%]"),
        *(4800, 0, "0.00% [0.00%, 0.08%]", ""),
    ]
    some = row(case, "hydra", Compared([100] * 4, [0, 2, 0, 2], 0.0123, 63.0))
    assert some[4:7] == ["2 of 4, 50% [4%, 96%]", 400, 4]
    assert str(some[7]).startswith("1.00% [0.")
    assert some[8] == "0.012"


def test_all_that_this_machine_can_run_is_compared() -> None:
    found = set(available_cases(CPU))
    assert {Case("eager", dtype) for dtype in ("float32", "bfloat16", "float16")} <= found
    assert {case.kernels for case in found} == {
        name
        for name, choice in CHOICES.items()
        if not choice.is_triton and any(choice.unsupported_reason(each, CPU) is None for each in TYPES.values())
    }


@pytest.mark.parametrize(
    ("text", "said"), [("eager", "'eager' has no known type"), ("fast:float32", "kernels: 'fast' is unknown")]
)
def test_an_unknown_case_is_refused(text: str, said: str) -> None:
    with pytest.raises(EntMTPError, match=said):
        Case.of(text)
