from hypothesis import given
from hypothesis import strategies as st

from entmtp.policies.ladder import Ladder, LadderPolicy
from entmtp.policies.signals import Signals
from entmtp.policies.static import ScheduledPolicy, SequencePolicy, StaticPolicy
from entmtp.trees.topology import Topology

RUNGS = (*(Topology.of([(rank,) for rank in range(nodes)]) for nodes in (8, 4, 2)), Topology.root_only())
LADDER = Ladder((0.2, 0.5, 0.52), RUNGS, 8)
HYSTERESIS = 0.05


def seen(entropy_ema: float, position: int = 0) -> Signals:
    return Signals(position=position, entropy=9.0, entropy_ema=entropy_ema, accepted_ema=0.0)


def climbed(averages: list[float]) -> list[int]:
    """The rung of every step."""
    policy = LadderPolicy(LADDER, HYSTERESIS)
    state = policy.start()
    return [RUNGS.index(policy.choose_one(seen(average), state, 63)) for average in averages]


def test_the_first_step_takes_the_rung_of_its_entropy() -> None:
    assert [climbed([average])[0] for average in (0.0, 0.2, 0.51, 0.52)] == [0, 1, 2, 3]


def test_noise_around_a_threshold_does_not_flap_the_tree() -> None:
    assert climbed([0.18] + [0.21, 0.19] * 10) == [0] * 21
    assert climbed([0.21] + [0.18, 0.22] * 10) == [1] * 21


def test_it_moves_once_the_threshold_is_passed_by_the_hysteresis() -> None:
    assert climbed([0.1, 0.24, 0.26, 0.16, 0.14]) == [0, 0, 1, 1, 0]


def test_a_jump_over_several_thresholds_goes_as_far_as_it_is_sure() -> None:
    assert climbed([0.1, 0.9]) == [0, 3]
    # Far below two thresholds, but not yet 0.05 below the lowest: the rung between.
    assert climbed([0.9, 0.18]) == [3, 1]
    assert climbed([0.1, 0.54]) == [0, 1]


@given(st.lists(st.floats(0, 2), min_size=1, max_size=40))
def test_it_is_never_further_off_than_the_hysteresis(averages: list[float]) -> None:
    for average, rung in zip(averages, climbed(averages), strict=True):
        assert LADDER.rung_of(average - HYSTERESIS) <= rung <= LADDER.rung_of(average + HYSTERESIS)


def test_requests_do_not_share_their_rung() -> None:
    policy = LadderPolicy(LADDER, HYSTERESIS)
    calm, wild = policy.start(), policy.start()
    assert policy.choose_one(seen(0.1), calm, 63) == RUNGS[0]
    assert policy.choose_one(seen(0.9), wild, 63) == RUNGS[3]
    assert policy.choose_one(seen(0.22), calm, 63) == RUNGS[0]


def test_a_static_policy_never_changes_its_mind() -> None:
    policy = StaticPolicy(RUNGS[1], 8)
    assert {policy.choose_one(seen(average), None, 63) for average in (0.0, 1.0)} == {RUNGS[1]}


def test_a_schedule_goes_by_position_and_guesses_nothing_where_it_is_silent() -> None:
    policy = ScheduledPolicy({0: RUNGS[0], 5: RUNGS[1]}, 8)
    chosen = [policy.choose_one(seen(0.5, position), None, 63) for position in (5, 0, 3)]
    assert chosen == [RUNGS[1], RUNGS[0], Topology.root_only()]


def test_a_sequence_goes_by_step_and_starts_over_at_its_end_and_per_request() -> None:
    policy = SequencePolicy(RUNGS[:3], 8)
    state = policy.start()
    assert [policy.choose_one(seen(0.5), state, 63) for _ in range(4)] == [RUNGS[0], RUNGS[1], RUNGS[2], RUNGS[0]]
    assert policy.choose_one(seen(0.5), policy.start(), 63) == RUNGS[0]
