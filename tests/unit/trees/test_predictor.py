import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entmtp.policies.signals import Signals
from entmtp.trees.predictor import Predictor
from entmtp.trees.topology import Topology

PATHS = [(0,), (0, 0), (1,)]


def predictor(**changes: object) -> Predictor:
    values: dict[str, object] = {
        "features": ["entropy", "accepted_ema"],
        "weights": [-1.0, 0.5],
        "bias": 0.25,
        "centres": [-1.0, 1.0],
        "shares": [0.5, 0.5],
        "paths": PATHS,
        "probabilities": [[0.4, 0.1, 0.2], [0.8, 0.5, 0.1]],
    }
    return Predictor.model_validate(values | changes)


def test_the_score_weighs_the_signals_by_name() -> None:
    found = predictor()
    values = Signals(3, 2.0, 9.0, 4.0).values(found.features)
    assert found.score_of(values) == found.score(np.array(values)) == pytest.approx(-2.0 + 2.0 + 0.25)


@pytest.mark.parametrize(
    ("score", "shares"), [(-5.0, [1, 0]), (-1.0, [1, 0]), (0.0, [0.5, 0.5]), (0.5, [0.25, 0.75]), (9.0, [0, 1])]
)
def test_weights_are_linear_between_centres_and_constant_beyond(score: float, shares: list[float]) -> None:
    assert predictor().centre_weights(score).tolist() == pytest.approx(shares)


def test_gains_are_sums_over_a_topologys_nodes_and_unknown_paths_gain_nothing() -> None:
    trees = [Topology.root_only(), Topology.of([(0,)]), Topology.of([(0,), (0, 0), (1,), (7,)])]
    assert predictor().gains(trees).tolist() == pytest.approx(np.array([[1, 1.4, 1.7], [1, 1.8, 2.4]]))


def test_lengths_of_a_tree_are_a_known_distribution() -> None:
    tree = Topology.of([(0,), (0, 0), (1,)])
    assert predictor().lengths(tree, 1.0).tolist() == pytest.approx([0.1, 0.4, 0.5])


@given(st.floats(-3, 3), st.sets(st.sampled_from(PATHS)))
def test_a_length_distribution_adds_up_and_has_the_expected_gain_as_mean(
    score: float, drawn: set[tuple[int, ...]]
) -> None:
    closed = drawn | {path[:-1] for path in drawn if len(path) > 1}
    tree = Topology.of(closed) if closed else Topology.root_only()
    lengths = predictor().lengths(tree, score)
    assert lengths.min() >= 0
    assert lengths.sum() == pytest.approx(1)
    gain = predictor().centre_weights(score) @ predictor().gains([tree])[:, 0]
    assert 1 + lengths @ np.arange(len(lengths)) == pytest.approx(gain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [1.0]}, "2 features need as many weights, not 1"),
        ({"centres": [1.0, 1.0]}, "must increase"),
        ({"probabilities": [[0.4, 0.1, 0.2]]}, "every centre needs a share, and a probability for every path"),
        ({"probabilities": [[0.4, 0.1], [0.8, 0.5]]}, "every centre needs a share, and a probability for every path"),
        ({"shares": [1.0]}, "every centre needs a share"),
        ({"features": ["unknown", "entropy"]}, "features.0"),
    ],
)
def test_inconsistent_fields_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor(**changes)
