"""A small backbone, and heads that guess right now and then."""

from tests.helpers.small_fixtures import backbone_fixture, heads_fixture

__all__ = ["backbone_fixture", "heads_fixture"]
