"""API keys: kept as SHA-256, compared in constant time.

    python -m deployments.http.auth alice >> keys.txt

prints a new key on standard error, once, and its line for the file on standard output. The service reads such lines
from `api_keys_file`, or from the environment variable ENTMTP_API_KEYS (lines parted by spaces).
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


class Keys:
    """Who may use the service; nobody has to say who they are where there are no keys."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, authorization: str | None) -> str:
        """Whose key an Authorization header holds.

        Raises:
            ApiError: 401 if there is none, or it is nobody's.
        """
        if not self._hashes:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise _refusal("no API key is given; send the header 'Authorization: Bearer KEY'", "missing_api_key")
        digest = _digest(key.strip())
        # All are compared, so that the time says nothing about which one is near.
        owners = [name for name, known in self._hashes.items() if hmac.compare_digest(known, digest)]
        if not owners:
            raise _refusal("the API key is not one of this service's; check it", "invalid_api_key")
        return owners[0]


def load_keys(path: Path | None) -> Keys:
    """Reads the keys' file and the environment variable; where both have a name, the file's key is its.

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
    return Keys(found)


def _hashes(text: str, place: str) -> dict[str, str]:
    """Hashes by name; `place` is what an error names before an entry's number, and never what the entry holds."""
    found = {}
    for number, entry in enumerate(text.split(), start=1):
        if (match := _LINE.fullmatch(entry)) is None:
            raise EntMTPError(
                f"{place} {number} is not NAME:SHA256; make one with 'python -m deployments.http.auth NAME'"
            )
        found[match[1]] = match[2]
    return found


def require_keys(host: str, keys: Keys, allow_anonymous: bool) -> None:
    """Raises EntMTPError where other machines could reach a service that knows no keys."""
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
    """Prints a new key and its line."""
    if len(arguments) != 1 or not _LINE.fullmatch(f"{arguments[0]}:{'0' * 64}"):
        print("usage: python -m deployments.http.auth NAME (letters, digits, dots, dashes)", file=sys.stderr)
        return 2
    key = f"sk-{secrets.token_urlsafe(32)}"
    print(f"the key, shown once: {key}", file=sys.stderr)
    print(f"{arguments[0]}:{_digest(key)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
