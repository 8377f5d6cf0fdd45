"""Requests that forbid drafting never draft, and write what plain decoding does; times are not tested."""

import numpy as np
import pytest

from benchmarks import undrafted
from entmtp.decoding.engine import Engine
from entmtp.errors import EntMTPError
from entmtp.heads.base import DraftHeads
from entmtp.models.backbone import Backbone
from entmtp.policies.static import StaticPolicy
from tests.helpers.small_cases import single_engine, small_backbone, small_heads, small_prompt
from tests.helpers.tiny_models import TREES

PROMPTS = [small_prompt(4, seed=1), small_prompt(7, seed=2)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_backbone()


@pytest.fixture
def engines(backbone: Backbone) -> dict[str, Engine]:
    plain, bushy = StaticPolicy(TREES["root"], 8), StaticPolicy(TREES["bushy"], 8)
    return {
        undrafted.PLAIN: single_engine(backbone, None, plain),
        "bushy": single_engine(backbone, small_heads("hydra", backbone), bushy),
    }


def test_heads_never_run(engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object) -> None:
        raise AssertionError("a head ran")

    heads = engines["bushy"].heads
    assert isinstance(heads, DraftHeads)
    monkeypatch.setattr(heads, "draft", run)
    found = undrafted.measure(engines, PROMPTS, tokens=5, rounds=2)
    assert list(found) == list(engines)
    assert all(times.shape == (2,) and (times > 0).all() for times in found.values())


def test_another_text_is_an_error(engines: dict[str, Engine]) -> None:
    other = small_backbone(seed=1)
    engines["bushy"] = single_engine(other, small_heads("hydra", other), engines["bushy"].policy)
    with pytest.raises(EntMTPError, match=r"bushy.* autoregressive .*prompt 0"):
        undrafted.measure(engines, PROMPTS, tokens=5, rounds=1)


def test_the_ratio_is_to_plain_decoding() -> None:
    plain = np.array([0.010, 0.020, 0.030])
    rows = undrafted.rows({undrafted.PLAIN: plain, "hydra": 1.5 * plain})
    assert rows == [[undrafted.PLAIN, "20.00", ""], ["hydra", "30.00", "1.50x [1.50, 1.50]"]]
