"""Checks of user-given names against MLflow's own rules, before any work starts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from entmtp.errors import EntMTPError
from entmtp.tracking.quiet import quieten_mlflow

_REFUSED = re.compile(r"[^\w .-]")
_LONGEST_PART = 200  # characters; MLflow takes 250 for a whole key
_SHOWN = 60


def check_names(field: str, keys: Mapping[str, str]) -> None:
    """Check names that become part of parameters or metrics.

    Args:
        field: the option that the names were given by.
        keys: by name, the whole key that MLflow would store.

    Raises:
        EntMTPError: MLflow would refuse one; with the field, the name and MLflow's rule.
    """
    quieten_mlflow()
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric, _validate_param

    for name, key in keys.items():
        try:
            _validate_param(key, "")
            _validate_metric(key, 0.0, 0, 0)
        except MlflowException as error:
            reason = str(error).splitlines()[0].rpartition("supplied: ")[2]
            shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
            raise EntMTPError(
                f"{field}: MLflow can't store the name '{shown}' ({reason}); give another name"
            ) from error


def key_part(text: str) -> str:
    """The text without the characters that MLflow refuses in a key, for names that are known only after the work."""
    return _REFUSED.sub("", text)[:_LONGEST_PART]
