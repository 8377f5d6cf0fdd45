"""Rows of a data set on the Hugging Face hub, failing within seconds where the hub cannot be reached."""

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
    """The data set is neither reachable nor cached; the message says why in one line."""


def hub_rows(dataset: HubDataset, columns: frozenset[str]) -> Iterator[Mapping[str, Any]]:
    """Rows of the data set, from the hub or from the local cache, with the other columns left out.

    Raises:
        HubUnavailableError: no hub and no cached copy, or the hub refuses the data set.
    """
    # Imported here because it takes more than a second, which a run on local files need not pay.
    try:
        import datasets
    except ImportError as error:
        raise HubUnavailableError("the package datasets is not installed (pip install datasets)") from error

    with _cache_only_when_unreachable():
        try:
            table = datasets.load_dataset(
                dataset.path, dataset.config, data_files=dataset.data_files, split=dataset.split
            )
        # Download, permission and cache trouble are all OSError or DatasetsError; the cache's own 'no such
        # configuration' is a plain ValueError.
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            said = next(iter(str(error).splitlines()), type(error).__name__)
            reason = said if hub_reachable() else "no answer from the hub and no cached copy"
            raise HubUnavailableError(f"{dataset}: {reason}") from error
    return iter(table.select_columns([name for name in table.column_names if name in columns]))


@cache
def hub_reachable() -> bool:
    """Whether the hub answers at all: one short request per process, through the user's proxies if there are any."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    # Which exception it is depends on the HTTP library that huggingface_hub uses; whichever, there is no answer.
    except Exception as error:
        logger.info("the hub %s does not answer: %s", constants.ENDPOINT, error)
        return False
    return True


@contextmanager
def _cache_only_when_unreachable() -> Iterator[None]:
    """Let `datasets` look only into its cache: its own retries on a dead network take half a minute per data set."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or not hub_reachable()
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
