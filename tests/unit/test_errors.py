"""How errors quote what users gave: in one short line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator, model_validator

from entmtp.errors import MAX_QUOTED, EntMTPError, quoted
from entmtp.settings import SamplingParams, Settings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=100),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=100), inner, max_size=6),
    max_leaves=10,
)


class Inner(Settings):
    """A setting whose validators speak for themselves."""

    size: int = 1
    shape: str = "round"

    @field_validator("shape")
    @classmethod
    def _drawn(cls, shape: str) -> str:
        if shape == "none":
            raise ValueError("it can't be drawn")
        return shape

    @model_validator(mode="after")
    def _fits(self) -> Inner:
        if self.size > 9:
            raise ValueError(f"size: {self.size} is too much; give less")
        return self


class Outer(Settings):
    """Has the other in it."""

    inner: Inner


@given(VALUES)
def test_a_quotation_is_a_short_line(value: Any) -> None:
    assert len(quoted(value)) <= MAX_QUOTED
    assert "\n" not in quoted(value)


def test_a_large_value_is_quoted_in_part() -> None:
    for value in ("x" * 10**7, ["x" * 10**6] * 17, {"x" * 10**6: 1}, 10**5000, [[[[["deep"]]]]]):
        assert len(quoted(value)) <= MAX_QUOTED


def test_a_small_value_is_quoted_whole() -> None:
    for value in (7, 0.5, "text", [1, 2], {"a": None}, True, -(2**63)):
        assert quoted(value) == repr(value)


def test_a_setting_is_named_with_its_value_and_the_rule() -> None:
    for given_, line in (
        ({"inner": {"size": "big"}}, "inner.size: 'big' is not accepted: input should be a valid integer"),
        ({"inner": {"size": 10}}, "inner.size: 10 is too much; give less"),
        ({"inner": {"shape": "none"}}, "inner.shape: it can't be drawn"),
    ):
        with pytest.raises(EntMTPError) as refusal:
            Outer.parse(**given_)
        assert str(refusal.value).startswith(line)


def test_a_setting_of_megabytes_makes_a_short_line() -> None:
    with pytest.raises(EntMTPError) as refusal:
        SamplingParams.parse(stop=["x" * 100_000] * 17)
    assert len(json.dumps(str(refusal.value))) < 250
