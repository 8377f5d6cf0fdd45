"""Arms that run with the heads of the saved project."""

from entmtp.evaluation.run.arms import default_arms, lossless_arms, with_heads

_KINDS = ("medusa", "hydra")
LOSSLESS = tuple(with_heads(lossless_arms(), _KINDS))
DEFAULT = tuple(with_heads(default_arms(), _KINDS))
"""Without those that use the banks of other suites."""
