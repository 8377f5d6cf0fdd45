"""API keys: stored as SHA-256, compared in constant time.

    python -m deployments.http.auth alice >> keys.txt

prints a new key once on standard error, and its line for the file on standard output. The service reads such lines
from `api_keys_file`, or from the environment variable ENTMTP_API_KEYS (separated by spaces).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from deployments.addresses import is_loopback
from deployments.protocol.errors import ApiError
from entmtp.errors import EntMTPError

VARIABLE = "ENTMTP_API_KEYS"
ANONYMOUS = "anonymous"
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")


class ApiKeys:
    """Hashes of API keys by owner. Without any keys, requests are anonymous."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, authorization: str | None, api_key: str | None = None) -> str:
        """Owner of the key in an Authorization header, or without one in the header X-Api-Key, as Anthropic's is.

        Raises:
            ApiError: 401 if the key is missing or unknown.
        """
        if not self._hashes:
            return ANONYMOUS
        scheme, _, key = (authorization or f"bearer {api_key or ''}").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise _refusal("no API key is given; send the header 'Authorization: Bearer KEY'", "missing_api_key")
        digest = _digest(key.strip())
        # All hashes are compared, so that the time does not depend on which one matches.
        owners = [name for name, known in self._hashes.items() if hmac.compare_digest(known, digest)]
        if not owners:
            raise _refusal("the API key is not one of this service's; check it", "invalid_api_key")
        return owners[0]


def load_keys(path: Path | None) -> ApiKeys:
    """Read the file of keys and the environment variable; the file wins if both have the same name.

    Raises:
        EntMTPError: the file can't be read, or an entry is not NAME:SHA256.
    """
    found = _hashes(os.environ.get(VARIABLE, ""), f"{VARIABLE}: entry")
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise EntMTPError(f"api_keys_file: {path} can't be read ({error}); give a file of NAME:SHA256") from error
        found |= _hashes(text, f"api_keys_file: {path}, entry")
    return ApiKeys(found)


def _hashes(text: str, source: str) -> dict[str, str]:
    """Hashes by owner. Errors name `source` and the number of an entry, never its content."""
    found = {}
    for number, entry in enumerate(text.split(), start=1):
        if (match := _LINE.fullmatch(entry)) is None:
            raise EntMTPError(
                f"{source} {number} is not NAME:SHA256; make one with 'python -m deployments.http.auth NAME'"
            )
        found[match[1]] = match[2]
    return found


def require_keys(host: str, keys: ApiKeys, allow_anonymous: bool) -> None:
    """Raise EntMTPError if other machines could reach a service without keys, unless ``allow_anonymous``."""
    if not (keys or allow_anonymous or is_loopback(host)):
        raise EntMTPError(
            f"api_keys_file: the service has no API keys but listens on {host}; make a key with"
            " 'python -m deployments.http.auth NAME', or set allow_anonymous"
        )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _refusal(message: str, code: str) -> ApiError:
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def main(arguments: list[str]) -> int:
    """Print a new key and its line for the file."""
    if len(arguments) != 1 or not _LINE.fullmatch(f"{arguments[0]}:{'0' * 64}"):
        print("usage: python -m deployments.http.auth NAME (letters, digits, dots, dashes)", file=sys.stderr)
        return 2
    key = f"sk-{secrets.token_urlsafe(32)}"
    print(f"the key, shown once: {key}", file=sys.stderr)
    print(f"{arguments[0]}:{_digest(key)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
