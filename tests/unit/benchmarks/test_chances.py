"""Before and after on made-up traces."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.chances import LOSSES, SPEEDS, compare, text_log_losses
from benchmarks.predict import Costs
from entmtp.calibration.fit_chances import fit_chances, guess_tables, total_log_loss
from entmtp.calibration.policy_replay import ExpansionAt
from entmtp.errors import EntMTPError
from entmtp.heads.interface import Expansion
from entmtp.trees.trace import MISS, RankTrace
from tests.helpers.small_cases import Scripted, small_bank, small_cost

EXPENSIVE = small_cost(per_node=1.0, per_level=3.0)
COSTS = Costs(EXPENSIVE, EXPENSIVE, ["hydra"], "nowhere", "note")
CLEAR, CLOSE = [0.5, 0.05, 0.04, 0.03], [0.5, 0.45, 0.02, 0.01]


def text_of(seed: int) -> tuple[RankTrace, list[list[float]]]:
    """A text, and what the heads claim at each position: where they are surer, they are right more often."""
    rng = np.random.default_rng(seed)
    clear = rng.random(200) < 0.5
    right = rng.random((200, 4)) < np.where(clear, 0.9, 0.1)[:, None]
    claimed = [CLEAR if each else CLOSE for each in clear]
    confidence = torch.tensor(claimed).log()[:, None].expand(-1, 4, -1)
    return RankTrace(torch.tensor(np.where(right, 0, MISS), dtype=torch.int32), torch.rand(200), confidence), claimed


def test_sharpness_that_tells_saves_loss_and_closes_the_gap() -> None:
    fitted = [text_of(seed)[0] for seed in range(4)]
    scored, claims = zip(*(text_of(seed) for seed in range(4, 7)), strict=True)

    def expansion_of(claimed: list[list[float]]) -> ExpansionAt:
        def at(position: int) -> Expansion:
            return Scripted([claimed[position]] * 4)

        return at

    cells = compare(fitted, scored, [expansion_of(claimed) for claimed in claims], small_bank(), COSTS)
    assert len(cells) == len(LOSSES) + len(SPEEDS)
    loss, saved, stored, before, after, gained, *shares = map(str, cells)
    assert stored == "sharpness"
    assert float(saved.split()[0]) > 0.03
    assert 0.1 < float(loss) < 1
    assert float(after.split("x")[0]) > float(before.split("x")[0])
    assert int(gained.split("%")[0]) > 100
    assert [int(share.split("%")[0]) for share in shares] == sorted(int(share.split("%")[0]) for share in shares)


def test_the_loss_of_texts_is_that_of_all_their_guesses() -> None:
    texts = [text_of(seed)[0] for seed in range(3)]
    chances = fit_chances(texts)
    each = text_log_losses(chances, texts)
    tables = guess_tables(texts)
    sizes = [sum(4 * int((table.text == number).sum()) for table in tables) for number in range(3)]
    assert each @ sizes == pytest.approx(total_log_loss(chances, tables))


def test_costs_without_expanding_say_what_to_do() -> None:
    with pytest.raises(EntMTPError, match=r"^profile: nowhere did not measure .* use 'flat'"):
        compare([], [], [], small_bank(), replace(COSTS, expanded=None))
