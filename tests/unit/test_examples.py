"""A test's own number of examples follows the profile."""

from hypothesis import settings

from tests.helpers.examples import examples


def test_examples_are_in_proportion_to_the_profiles_and_at_least_two() -> None:
    assert examples(per_hundred=300) == 3 * settings().max_examples
    assert examples(per_hundred=1) == 2
