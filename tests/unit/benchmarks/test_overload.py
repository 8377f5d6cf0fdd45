"""What an overload is compared with."""

from benchmarks.overload import capacity_of
from entmtp.loadtest.traffic import RequestOutcome


def test_capacity_is_what_all_users_together_are_answered() -> None:
    first, second = (RequestOutcome(at, began=0.0, ended=2.0) for at in (0, 1))
    third = RequestOutcome(
        2, began=2.0, ended=4.0
    )  # the last that is sent: from here on the other user has nothing to ask
    last = RequestOutcome(3, began=2.0, ended=3.0)
    assert capacity_of([first, second, third, last]) == ([first, second], 1.0)


def test_a_request_that_ends_as_the_last_begins_counts() -> None:
    slow, quick = RequestOutcome(0, began=0.0, ended=3.0), RequestOutcome(1, began=0.0, ended=1.0)
    last = RequestOutcome(2, began=1.0, ended=2.0)
    assert capacity_of([slow, quick, last]) == ([quick], 1.0)
