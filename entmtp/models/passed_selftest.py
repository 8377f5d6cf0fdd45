"""The memory of a passed self-test: a model's kernels are compared with transformers' code once on a machine.

The comparison takes longer than a short answer. What it depends on is the name of a small file in the cache folder. A
file that is absent, damaged or can't be written means that the comparison is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from entmtp.files import write_text
from entmtp.models.bare_model import BareModel
from entmtp.models.kernels.block_weight import formats_of, named_weights
from entmtp.models.kernels.compiled import library
from entmtp.models.kernels.packed_weight import format_of
from entmtp.persistent_paths import cache_folder
from entmtp.settings import Kernels

_MODELS = Path(__file__).parent


@dataclass(frozen=True)
class PassedSelftest:
    """A comparison of fused kernels with transformers' code that was passed, or not yet made.

    Attributes:
        conditions: everything that its outcome depends on.
    """

    conditions: tuple[str, ...]

    @classmethod
    def of(cls, model: BareModel, kernels: Kernels, fingerprint: str) -> PassedSelftest:
        """The comparison for ``model``, which has this ``fingerprint``, with these ``kernels``."""
        frequencies = model.model.rotary_emb.inv_freq.numpy().tobytes()
        formats = repr([(name, format_of(weight)) for name, weight in named_weights(model)]).encode()
        parts = fingerprint, repr(model.config), *(hashlib.sha256(each).hexdigest() for each in (frequencies, formats))
        compiled = Path(library(formats_of(model))._name).stem  # its sources, flags and CPU
        versions = [f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers")]
        return cls((*parts, kernels, compiled, *versions, _sources()))

    def is_remembered(self) -> bool:
        """Whether the comparison was passed on this machine."""
        try:
            return self._path.read_text(encoding="utf-8") == self._text
        except (OSError, ValueError):
            return False

    def remember(self) -> None:
        """Remember that it was passed, if the cache folder can be written."""
        with contextlib.suppress(OSError):
            write_text(self._path, self._text)

    @property
    def _text(self) -> str:
        return "".join(f"{condition}\n" for condition in self.conditions)

    @property
    def _path(self) -> Path:
        return cache_folder() / "selftests" / f"{hashlib.sha256(self._text.encode()).hexdigest()[:16]}.txt"


@cache
def _sources() -> str:
    """Hash of this package's own code."""
    digest = hashlib.sha256()
    for path in sorted(_MODELS.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
