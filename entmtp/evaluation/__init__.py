"""The benchmark: paired comparisons of methods on suites, and their reports."""
