import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entmtp.errors import EntMTPError
from entmtp.trees.bank import MAX_BANK_BYTES, bundled_bank, load_bank
from entmtp.trees.probability_calibration import LogLosses
from entmtp.trees.tuning_texts import TuningTexts
from tests.helpers.small_cases import small_bank, small_estimating_chances, small_sharp_chances, trace_of


def write(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write the file of the small bank with an error in it."""
    content = small_bank().model_dump(mode="json")
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_a_saved_bank_is_read_back_unchanged(tmp_path: Path) -> None:
    bank = small_bank().model_copy(update={"tuning": TuningTexts.of([trace_of([[0, 40], [1, 2]])], max_rungs=4)})
    bank.save(tmp_path / "new" / "gsm8k-hydra.json")
    assert load_bank(tmp_path / "new" / "gsm8k-hydra.json") == bank
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["gsm8k-hydra.json"]


def test_a_bank_without_sharpness_is_one_with_the_plain_calibration(tmp_path: Path) -> None:
    def older(content: dict[str, Any]) -> None:
        del content["chances"]["sharpness"], content["chances"]["held_out"]

    assert load_bank(write(tmp_path / "older.json", older)) == small_bank()


def test_a_bank_of_before_estimates_counted_has_the_calibration_by_sharpness(tmp_path: Path) -> None:
    chances = small_sharp_chances().model_copy(update={"held_out": LogLosses(texts=5, plain=0.31, sharpness=0.29)})

    def older(content: dict[str, Any]) -> None:
        content["chances"] = chances.model_dump(mode="json")
        del content["chances"]["sharpness"]["estimated_odds"], content["chances"]["held_out"]["estimated_odds"]

    found = load_bank(write(tmp_path / "older.json", older)).chances
    assert found == chances
    assert not found.reads_estimates


def test_the_calibration_that_was_chosen_is_stored_with_what_decided(tmp_path: Path) -> None:
    losses = LogLosses(texts=5, plain=0.31, sharpness=0.29, estimated_odds=0.28)
    chances = small_estimating_chances().model_copy(update={"held_out": losses})
    bank = small_bank().model_copy(update={"chances": chances})
    bank.save(tmp_path / "bank.json")
    assert load_bank(tmp_path / "bank.json").chances == chances


@pytest.mark.parametrize(
    "path", sorted(bundled_bank("mixed", "hydra").parent.glob("*.json")), ids=lambda path: path.stem
)
def test_every_bank_that_is_shipped_loads(path: Path) -> None:
    chances = load_bank(path).chances
    assert (chances.held_out is None) <= (chances.sharpness is None)


def test_a_frontier_gives_trees_of_every_size() -> None:
    calm = small_bank().bins[0]
    assert [tree.nodes for tree in calm.trees] == [0, 1, 2, 3, 4]
    assert calm.tree(3).paths == ((0,), (0, 0), (0, 0, 0))
    assert calm.tree(99) == calm.trees[-1]


def set_in(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> None:
        at: Any = content
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("thresholds", value=[0.9, 0.4]), r"thresholds \[0.9, 0.4\] must increase"),
        (set_in("thresholds", value=[0.4, 0.4]), "must increase"),
        (set_in("thresholds", value=[0.4]), "1 thresholds need 2 bins, not 3"),
        (set_in("thresholds", 0, value="NaN"), r"thresholds\.0: Input should be a finite number"),
        (
            set_in("overall", "paths", value=[[0], [1, 0], [1], [0, 0]]),
            r"overall.*path \(1, 0\) comes before its parent",
        ),
        (set_in("overall", "paths", value=[[0], [0], [1], [2]]), r"overall.*path \(0,\) is empty or comes twice"),
        (set_in("overall", "paths", value=[[], [0], [1], [2]]), r"path \(\) is empty"),
        (set_in("overall", "paths", 1, value=[-1]), r"overall\.paths\.1.*greater than or equal to 0"),
        (set_in("overall", "paths", value=[[rank] for rank in range(256)]), r"overall\.paths.*at most 255"),
        (
            set_in("overall", value={"paths": [], "gain": [1.0], "share": 1}),
            "overall has one tree only, plain decoding",
        ),
        (lambda content: content.pop("predictor"), "predictor: Field required"),
        (set_in("predictor", "centres", value=[1, 1, 1]), r"predictor: .*must increase"),
        (set_in("overall", "gain", value=[1.0]), "gain needs one more entry than paths"),
        (set_in("overall", "gain", 1, value=float("nan")), r"overall\.gain\.1: Input should be a finite number"),
        (set_in("bins", 0, "share", value=2), r"bins\.0\.share"),
        (set_in("bins", 0, "share", value=0.1), "shares add up to 0.600"),
        (set_in("tuning", value={"max_rungs": 4, "texts": []}), r"tuning\.texts: List should have at least 1 item"),
        (
            set_in("tuning", value={"max_rungs": 4, "texts": [{"ranks": "0 0", "entropy": "1"}]}),
            r"tuning\.texts\.0: 2 positions have ranks and 1 an entropy",
        ),
        (set_in("format", value=1), "format"),
        (set_in("extra", value=1), "extra: Extra inputs are not permitted"),
        (lambda content: content.pop("provenance"), "provenance: Field required"),
    ],
)
def test_a_wrong_bank_is_refused_by_field(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "bank.json", change)
    with pytest.raises(EntMTPError, match=message) as caught:
        load_bank(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not JSON", b"\xff\xfe\x00", b"[1]", b"null"])
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    path.write_bytes(content)
    with pytest.raises(EntMTPError, match=r"bank: .*bank\.json: file: "):
        load_bank(path)


def test_a_huge_file_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    with path.open("wb") as file:
        file.truncate(MAX_BANK_BYTES + 1)
    with pytest.raises(EntMTPError, match="is larger than"):
        load_bank(path)


def test_an_absent_bank_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(EntMTPError, match=r"^bank: .*none\.json "):
        load_bank(tmp_path / "none.json")


def test_texts_of_more_heads_than_there_are_are_refused() -> None:
    bank = small_bank().model_copy(update={"tuning": TuningTexts.of([trace_of([[0] * 5])], max_rungs=4)})
    bank.check_depth(5)
    with pytest.raises(EntMTPError, match="tuning texts are ranked by 5 heads but there are only 4"):
        bank.check_depth(4)


HEADS: dict[str, Any] = {
    "kind": "hydra",
    "model_fingerprint": "m" * 64,
    "heads_fingerprint": "h" * 64,
    "estimates_acceptance": False,
}


@pytest.mark.parametrize("field", ["heads_kind", "model_fingerprint", "heads_fingerprint"])
def test_a_bank_of_other_heads_or_another_model_is_refused(field: str) -> None:
    small_bank().check_heads(**HEADS, num_heads=4)
    with pytest.raises(EntMTPError, match=rf"^bank: its {field} is other, "):
        small_bank(**{field: "other"}).check_heads(**HEADS, num_heads=4)


def test_a_bank_that_reads_estimates_is_refused_with_heads_that_make_none() -> None:
    bank = small_bank().model_copy(update={"chances": small_estimating_chances()})
    bank.check_heads(**HEADS | {"estimates_acceptance": True}, num_heads=4)
    with pytest.raises(EntMTPError, match=r"^bank: chances\.sharpness\.estimated_odds is set but these heads don't"):
        bank.check_heads(**HEADS, num_heads=4)


def test_a_tree_deeper_than_the_heads_is_refused_even_if_it_would_never_be_chosen() -> None:
    with pytest.raises(EntMTPError, match=r"^topology: path \(0, 0, 0\) has depth 3 .* 2 draft heads"):
        small_bank().check_heads(**HEADS, num_heads=2)
