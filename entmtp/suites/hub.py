"""Rows of a data set on the Hugging Face hub, with a quick failure if the hub cannot be reached."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from entmtp.suites.base import HubDataset

PROBE_SECONDS = 5.0

logger = logging.getLogger(__name__)


class HubUnavailableError(Exception):
    """Raised if the data set is neither reachable nor cached; the message is one line."""


def hub_rows(dataset: HubDataset, columns: frozenset[str]) -> Iterator[Mapping[str, Any]]:
    """Rows of the data set with these columns alone, from the hub or the local cache.

    Raises:
        HubUnavailableError: no hub and no cached copy, or the hub refuses the data set.
    """
    # Imported here because it takes more than a second, which runs on local files can save.
    try:
        import datasets
    except ImportError as error:
        raise HubUnavailableError("the package datasets is not installed (pip install datasets)") from error

    with _cache_only_when_unreachable():
        try:
            table = datasets.load_dataset(
                dataset.path, dataset.config, data_files=dataset.data_files, split=dataset.split
            )
        # Download, permission and cache errors are OSError or DatasetsError; a configuration that is missing from the
        # cache is a plain ValueError.
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            message = next(iter(str(error).splitlines()), type(error).__name__)
            reason = message if hub_reachable() else "no answer from the hub and no cached copy"
            raise HubUnavailableError(f"{dataset}: {reason}") from error
    return iter(table.select_columns([name for name in table.column_names if name in columns]))


@cache
def hub_reachable() -> bool:
    """Whether the hub is reachable: one short request per process, through the user's proxies if there are any."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    # The type of exception depends on the HTTP library that huggingface_hub uses; each means that there is no answer.
    except Exception as error:
        logger.info("the hub %s does not answer: %s", constants.ENDPOINT, error)
        return False
    return True


@contextmanager
def _cache_only_when_unreachable() -> Iterator[None]:
    """Restrict `datasets` to its cache if the hub is unreachable: its own retries take half a minute per data set."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or not hub_reachable()
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
