"""An engine's replica in the process of a test, behind what stands for Serve's handle and response."""

from __future__ import annotations

from deployments.engines.replica import EngineReplica
from deployments.protocol.messages import CallStream
from entmtp.decoding.request import Request


class InProcessHandle:
    """Handle of an engine whose calls go to ``replica``."""

    def __init__(self, replica: EngineReplica) -> None:
        self._replica = replica

    @property
    def generate(self) -> InProcessHandle:
        return self

    def options(self, *, stream: bool) -> InProcessHandle:
        return self

    def remote(self, call: Request) -> InProcessResponse:
        return InProcessResponse(self._replica.generate(call))


class InProcessResponse:
    """Response to a call."""

    def __init__(self, items: CallStream) -> None:
        self._items = items

    def __aiter__(self) -> CallStream:
        return self._items

    def cancel(self) -> None:
        pass
