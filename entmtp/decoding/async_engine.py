"""The engine for an event loop: its steps run in a thread of their own, and what they bring arrives as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from entmtp.decoding.engine import Engine
from entmtp.decoding.faults import description
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import Request
from entmtp.errors import EntMTPError

_log = logging.getLogger(__name__)
T = TypeVar("T")


class EngineDeadError(EntMTPError):
    """The engine's loop has ended with an error; nothing can be served any more."""


class _Mailbox:
    """Where one request's progress arrives."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[RequestOutput | EntMTPError] = asyncio.Queue()

    def put(self, item: RequestOutput | EntMTPError) -> None:
        """From any thread; what comes after the event loop has closed is lost with its reader."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:
            _log.debug("an event loop closed before its request had ended")

    async def get(self) -> RequestOutput:
        item = await self._queue.get()
        if isinstance(item, EntMTPError):
            raise item
        return item


class AsyncEngine:
    """Runs an :class:`Engine` for any number of coroutines. Close it, or use it as an async context manager."""

    engine: Engine

    def __init__(self, make: Callable[[], Engine]) -> None:
        """Makes the engine in the thread that runs it.

        Every thread that computes has OpenMP threads of its own, and as soon as there are more than cores they no
        longer spin while they wait for each other, which made steps a fifth slower on two cores.

        Raises:
            EntMTPError: what ``make`` raises.
        """
        self._mailboxes: dict[str, _Mailbox] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._asked: set[Future[Any]] = set()
        self._wake = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        made: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, args=(make, made), name="entmtp-engine", daemon=True)
        self._thread.start()
        made.result()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def healthy(self) -> bool:
        """Whether the loop runs: what a health check asks."""
        return self._thread.is_alive() and self._error is None

    def close(self) -> None:
        """Ends the loop; requests that run are given up with an error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    async def generate(self, request: Request) -> AsyncGenerator[RequestOutput]:
        """Yields what each step brings, until the request has ended; a caller that stops listening cancels it.

        Raises:
            EntMTPError: if the request can't be served; others are not touched.
            EngineFullError: if too many wait already.
            EngineDeadError: if the loop has ended.
        """
        self.engine.check(request)
        mailbox = _Mailbox()
        if request.id in self._mailboxes:
            raise EntMTPError(f"id: '{request.id}' is taken by a request that still runs; give each its own")
        self._mailboxes[request.id] = mailbox
        try:
            self._order(lambda: self._submit(request, mailbox))
            while True:
                output = await mailbox.get()
                yield output
                if output.finish_reason:
                    if output.finish_reason == "error":
                        raise EntMTPError(output.completion.error or "engine: the request failed")
                    return
        finally:
            self._mailboxes.pop(request.id, None)
            with contextlib.suppress(EngineDeadError):
                self._order(lambda: self.engine.cancel(request.id))

    async def ask(self, question: Callable[[Engine], T]) -> T:
        """Has the engine asked, or changed, between two steps.

        Raises:
            EngineDeadError: if the loop has ended.
        """
        answer: Future[T] = Future()

        def order() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(question(self.engine))
            except Exception as error:  # it belongs to the one who asked
                answer.set_exception(error)

        self._asked.add(answer)
        try:
            self._order(order)
            return await asyncio.wrap_future(answer)
        finally:
            self._asked.discard(answer)

    def _order(self, order: Callable[[], None]) -> None:
        """Has something done by the engine's thread, between two steps."""
        with self._wake:
            if not self.healthy or self._closing:
                raise EngineDeadError(f"engine: it does not run any more ({self._error or 'closed'}); start it anew")
            self._orders.append(order)
            self._wake.notify()

    def _submit(self, request: Request, mailbox: _Mailbox) -> None:
        try:
            self.engine.submit(request)
        except EntMTPError as error:
            mailbox.put(error)
        except Exception as error:  # whatever it is, it is this request's own
            _log.exception("request %s could not be queued", request.id)
            mailbox.put(EntMTPError(description(error, "queueing it")))

    def _live(self, make: Callable[[], Engine], made: Future[None]) -> None:
        try:
            self.engine = make()
        except BaseException as error:  # it is raised where the engine was asked for
            made.set_exception(error)
            return
        made.set_result(None)
        self._run()

    def _run(self) -> None:
        try:
            while self._next_orders():
                for output in self.engine.step():
                    if (mailbox := self._mailboxes.get(output.id)) is not None:
                        mailbox.put(output)
        except BaseException as error:  # whatever it is, those who wait must hear of it
            self._error = error
            _log.exception("the engine's loop has ended")
        finally:
            self._keep()
            with self._wake:
                self._closing = True
            gone = EngineDeadError(f"engine: it ended while this request ran ({self._error or 'closed'})")
            for mailbox in list(self._mailboxes.values()):
                mailbox.put(gone)
            for answer in list(self._asked):
                with contextlib.suppress(InvalidStateError):  # it has been answered, or nobody waits any more
                    answer.set_exception(gone)

    def _keep(self) -> None:
        try:
            self.engine.close()
        except Exception:  # it is for the next run's speed only
            _log.exception("what the engine had learnt could not be kept")

    def _next_orders(self) -> bool:
        """Waits until there is something to do, carries out what was ordered; False when it is time to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._orders or not self.engine.idle)
            if self._closing:
                return False
            orders, self._orders = self._orders, deque()
        for order in orders:
            order()
        return True
