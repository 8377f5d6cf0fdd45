"""Asynchronous engine: steps run in a thread of their own, and outputs are streamed to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Any, TypeVar

from entmtp.decoding.engine import Engine
from entmtp.decoding.faults import description
from entmtp.decoding.grammars.compiler import Grammar
from entmtp.decoding.outputs import RequestOutput
from entmtp.decoding.request import InvalidRequestError, Request
from entmtp.errors import EntMTPError

_log = logging.getLogger(__name__)
T = TypeVar("T")

COMPILE_SECONDS = 1.5
"""Time after which the compilation of a constraint is given up."""

_COMPILERS, _COMPILER_NICENESS = 2, 10


class EngineDeadError(EntMTPError):
    """Raised if the engine's loop has ended; nothing can be served any more."""


class _Mailbox:
    """Queue of one request's outputs, from the engine's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[RequestOutput | EntMTPError] = asyncio.Queue()

    def put(self, item: RequestOutput | EntMTPError) -> None:
        """Put an item from any thread; it is dropped if the event loop has closed, since nobody can read it."""
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
        """Make the engine in the thread that runs it.

        Every thread that computes starts OpenMP threads of its own. With more of them than cores, they no longer spin
        while they wait for each other, which made steps a fifth slower on two cores.

        Raises:
            EntMTPError: what ``make`` raises.
        """
        self._mailboxes: dict[str, _Mailbox] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._pending: set[Future[Any]] = set()
        self._wake = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._compilers = ThreadPoolExecutor(_COMPILERS, "entmtp-grammar", _yield_cpu)
        made: Future[None] = Future()
        self._thread = threading.Thread(target=self._thread_main, args=(make, made), name="entmtp-engine", daemon=True)
        self._thread.start()
        made.result()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def healthy(self) -> bool:
        """Whether the loop runs, for health checks."""
        return self._thread.is_alive() and self._error is None

    def close(self) -> None:
        """End the loop; running requests end with an error."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._compilers.shutdown(wait=False, cancel_futures=True)

    async def generate(self, request: Request) -> AsyncGenerator[RequestOutput]:
        """Yield each step's output until the request has ended; a caller that stops iterating cancels it.

        Raises:
            EntMTPError: if the request can't be served; others are not affected.
            InvalidRequestError: if that is the request's own fault.
            EngineFullError: if it would wait for too long, or too many wait already.
            EngineDeadError: if the loop has ended.
        """
        self.engine.check(request)
        grammar = await self._compile(request)
        mailbox = _Mailbox()
        if request.id in self._mailboxes:
            raise EntMTPError(f"id: '{request.id}' is taken by a request that still runs; give each its own")
        self._mailboxes[request.id] = mailbox
        try:
            self._enqueue(lambda: self._submit(request, grammar, mailbox))
            while True:
                output = await mailbox.get()
                yield output
                if output.finish_reason:
                    if output.finish_reason == "error":
                        error = InvalidRequestError if output.invalid else EntMTPError
                        raise error(output.error or "engine: the request failed")
                    return
        finally:
            self._mailboxes.pop(request.id, None)
            with contextlib.suppress(EngineDeadError):
                self._enqueue(lambda: self.engine.cancel(request.id))

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Call ``function`` with the engine between two steps; returns its result.

        Raises:
            EngineDeadError: if the loop has ended.
        """
        result: Future[T] = Future()

        def command() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                result.set_result(function(self.engine))
            except Exception as error:  # it is raised in the caller
                result.set_exception(error)

        self._pending.add(result)
        try:
            self._enqueue(command)
            return await asyncio.wrap_future(result)
        finally:
            self._pending.discard(result)

    def _enqueue(self, command: Callable[[], None]) -> None:
        """Queue a command, which the engine's thread runs between two steps."""
        with self._wake:
            if not self.healthy or self._closing:
                raise EngineDeadError(f"engine: it does not run any more ({self._error or 'closed'}); start it anew")
            self._commands.append(command)
            self._wake.notify()

    async def _compile(self, request: Request) -> Grammar | None:
        """Compile a request's constraint in a thread of its own, which steps don't wait for.

        Raises:
            InvalidRequestError: it can't be used, or takes too long.
        """
        structured, grammars = request.params.structured, self.engine.grammars
        if structured is None or grammars is None:
            return None
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._compilers, grammars.prepare)
        compiling = loop.run_in_executor(self._compilers, self.engine.compile, request)
        try:
            return await asyncio.wait_for(asyncio.shield(compiling), COMPILE_SECONDS)
        except TimeoutError:
            compiling.add_done_callback(lambda late: late.cancelled() or late.exception())
            message = f"{structured.field_name}: it is not compiled within {COMPILE_SECONDS} s; simplify it"
            raise InvalidRequestError(message) from None

    def _submit(self, request: Request, grammar: Grammar | None, mailbox: _Mailbox) -> None:
        try:
            self.engine.submit(request, grammar=grammar)
        except EntMTPError as error:
            mailbox.put(error)
        except Exception as error:  # of any type: it is caused by this request alone
            _log.exception("request %s could not be queued", request.id)
            mailbox.put(EntMTPError(description(error, "queueing it")))

    def _thread_main(self, make: Callable[[], Engine], made: Future[None]) -> None:
        try:
            self.engine = make()
        except BaseException as error:  # it is raised in the thread that makes the AsyncEngine
            made.set_exception(error)
            return
        made.set_result(None)
        self._run()

    def _run(self) -> None:
        try:
            while self._run_commands():
                for output in self.engine.step():
                    if (mailbox := self._mailboxes.get(output.id)) is not None:
                        mailbox.put(output)
        except BaseException as error:  # of any type: all waiting callers get it
            self._error = error
            _log.exception("the engine's loop has ended")
        finally:
            self._close_engine()
            with self._wake:
                self._closing = True
            dead = EngineDeadError(f"engine: it ended while this request ran ({self._error or 'closed'})")
            for mailbox in list(self._mailboxes.values()):
                mailbox.put(dead)
            for result in list(self._pending):
                with contextlib.suppress(InvalidStateError):  # it is done or cancelled already
                    result.set_exception(dead)

    def _close_engine(self) -> None:
        try:
            self.engine.close()
        except Exception:  # it only makes the next run faster
            _log.exception("what the engine had learnt could not be saved")

    def _run_commands(self) -> bool:
        """Wait until there is work, and run the queued commands; False if the engine is closing."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._commands or not self.engine.idle)
            if self._closing:
                return False
            commands, self._commands = self._commands, deque()
        for command in commands:
            command()
        return True


def _yield_cpu() -> None:
    """Let the engine's threads go first. Only Linux has a niceness of single threads."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _COMPILER_NICENESS)
