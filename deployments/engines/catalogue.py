"""Choice of the engine for a request, by model and then by the requested method, policy and task."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.protocol.errors import ApiError
from deployments.protocol.schema import Speculation
from deployments.settings import EngineArgs
from entmtp.errors import quoted


class Catalogue:
    """The served engines; the first engine of a model is its default."""

    def __init__(self, engines: Sequence[EngineArgs]) -> None:
        self._engines = list(engines)

    @property
    def models(self) -> dict[str, list[EngineArgs]]:
        """Engines by model name."""
        return {name: self._engines_of(name) for name in dict.fromkeys(one.model_name for one in self._engines)}

    def find(self, model: str, speculation: Speculation | None) -> EngineArgs:
        """First engine of ``model`` with the requested method, policy and task.

        Raises:
            ApiError: 404 for a model that is not served, 400 for a method, policy or task that it is not served with.
        """
        engines = self._engines_of(model)
        if not engines:
            names = ", ".join(self.models)
            raise ApiError(
                404, f"model: {quoted(model)} is not served here; choose {names}", param="model", code="model_not_found"
            )
        for field in ("method", "policy", "task"):
            value = None if speculation is None else getattr(speculation, field)
            if value is None:
                continue
            served = ", ".join(dict.fromkeys(getattr(one, field) for one in engines))
            engines = [one for one in engines if getattr(one, field) == value]
            if not engines:
                raise ApiError(
                    400,
                    f"speculation.{field}: {quoted(value)} is not served for model '{model}'; choose {served}",
                    param=f"speculation.{field}",
                    code="invalid_value",
                )
        return engines[0]

    def _engines_of(self, model: str) -> list[EngineArgs]:
        return [one for one in self._engines if one.model_name == model]
