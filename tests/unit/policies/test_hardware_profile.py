import json
from pathlib import Path
from typing import Any

import pytest

from entmtp.errors import EntMTPError
from entmtp.policies.hardware_profile import HardwareProfile, known_profiles, load_profile
from entmtp.trees.topology import Topology

CHAIN = Topology.of([(0,), (0, 0)])
GRID = [(1, 100, 1.0), (1, 300, 3.0), (4, 100, 5.0), (4, 300, 7.0)]


def point(batch: int, context: int, scale: float) -> dict[str, Any]:
    times = {f"{part}_ms": [scale, 2 * scale] for part in ("policy", "verify", "accept", "compact", "rest")}
    drafts = {"narrow_draft_ms": [scale, 2 * scale], "wide_draft_ms": [3 * scale, 4 * scale]}
    return {"batch": batch, "context": context} | times | drafts


def expanded_point(batch: int, context: int, scale: float, depths: int = 2) -> dict[str, Any]:
    return point(batch, context, scale) | {"grown_draft_ms": [10 * scale * depth for depth in range(1, depths + 1)]}


def table(**changes: Any) -> dict[str, Any]:
    origin = dict.fromkeys(("hardware", "date", "command", "commit", "model", "heads_kind", "dtype", "kernels"), "x")
    return {
        "measured": origin | {"versions": {}},
        "nodes": [0, 2],
        "batches": [1, 4],
        "contexts": [100, 300],
        "wide_nodes": 63,
        "points": [point(*one) for one in GRID],
    } | changes


def profile() -> HardwareProfile:
    return HardwareProfile.model_validate(table())


@pytest.mark.parametrize(
    ("batch", "context", "scale"), [(1, 100, 1), (4, 300, 7), (1, 200, 2), (2, 100, 1 + 4 / 3), (4, 250, 6.5)]
)
def test_between_points_it_is_linear(batch: int, context: int, scale: float) -> None:
    cost = profile().cost(batch, context)
    assert cost(Topology.root_only()) == pytest.approx(5 * scale)
    assert cost(CHAIN) == pytest.approx(10 * scale + 2 * scale)
    assert cost.wide_nodes == 63


def test_a_profile_of_padded_trees_has_costs_of_padded_trees() -> None:
    cost = HardwareProfile.model_validate(table(nodes=[0, 3], padded=True)).cost()
    assert (cost.padded, cost.without_draft(2), cost.without_draft(3)) == (True, 10.0, 10.0)
    plain = HardwareProfile.model_validate(table(nodes=[0, 3])).cost()
    assert not plain.padded, "without the field"
    assert plain.without_draft(2) == pytest.approx(5 + 10 / 3)


def test_growing_costs_what_was_measured_for_it_whatever_the_trees_width() -> None:
    assert profile().expanded_cost() is None
    expanded = HardwareProfile.model_validate(table(points=[expanded_point(*one) for one in GRID])).expanded_cost(
        1, 200
    )
    assert expanded is not None
    assert expanded(Topology.root_only()) == pytest.approx(5 * 2)
    wide = Topology.of([(0,), (0, 0), *((rank,) for rank in range(1, 30))])
    assert (expanded.draft(CHAIN), expanded.draft(wide)) == pytest.approx((40.0, 40.0))


def test_without_a_context_it_is_the_shortest_measured() -> None:
    assert profile().cost() == profile().cost(1, 100)


@pytest.mark.parametrize(("batch", "context", "name"), [(5, 100, "batch: 5"), (1, 99, "context: 99")])
def test_outside_the_grid_nothing_is_known(batch: int, context: int, name: str) -> None:
    with pytest.raises(EntMTPError, match=f"{name} lies outside what the profile of x measured"):
        profile().cost(batch, context)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"points": table()["points"][:3]}, "batch 4 with context 300 was not measured"),
        ({"points": [*table()["points"], point(1, 100, 1)]}, "or one twice"),
        ({"points": [*table()["points"][:3], point(4, 300, float("nan"))]}, "points.3.policy_ms.0"),
        ({"points": [*table()["points"][:3], point(4, 300, -1.0)]}, "points.3.policy_ms.0"),
        ({"points": [*table()["points"][:3], point(4, 300, 1) | {"accept_ms": [1.0]}]}, "has 1 times for accept_ms"),
        ({"points": [*table()["points"][:3], point(4, 300, 1) | {"wide_draft_ms": [1.0]}]}, "different depths"),
        (
            {"points": [expanded_point(1, 100, 1.0), *table()["points"][1:]]},
            "grown_draft_ms was measured at some points",
        ),
        ({"points": [expanded_point(*one, depths=3) for one in GRID]}, "different depths"),
        ({"nodes": [1, 2]}, "nodes must start at 0"),
        ({"nodes": [0, 2, 2]}, "must increase"),
        ({"batches": [4, 1]}, "batches .* must increase"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_profile_with_holes_is_reported_in_one_line(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(table(**changes)))
    with pytest.raises(EntMTPError, match=rf"profile: .*mine\.json: .*{reason}.*; measure it again with") as raised:
        load_profile(str(path))
    assert "\n" not in str(raised.value)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    known = ", ".join(known_profiles())
    with pytest.raises(EntMTPError, match=rf"^profile: 'abacus' .* \({known}\)"):
        load_profile("abacus")


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile().save(tmp_path / "mine.json")
    assert load_profile(str(tmp_path / "mine.json")) == profile()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize("name", known_profiles())
def test_the_shipped_ones_are_complete(name: str) -> None:
    cost = load_profile(name).cost()
    assert cost(Topology.root_only()) > 0


def test_one_is_shipped() -> None:
    assert known_profiles()
