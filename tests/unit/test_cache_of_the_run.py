"""Tests measure step costs into a cache of the run, next to the user's model and kernels."""

from __future__ import annotations

from entmtp.persistent_paths import cache_folder


def test_a_run_has_a_cache_of_its_own_with_the_users_model() -> None:
    assert cache_folder().name.startswith("entmtp-cache-")
    assert (cache_folder() / "models").is_symlink()
    assert not (cache_folder() / "costs").is_symlink()
