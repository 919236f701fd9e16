"""The thread that owns the engine. Requests wait in a bounded queue, join the batch, and get their ids as they come."""

import asyncio
import collections
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from ghost_jax.inference.engine import Engine, Scores, Text

REGISTRY = CollectorRegistry()  # of the server alone: libraries keep metrics in the default one
WAITING = Gauge("ghost_requests_waiting", "Requests that wait for a row of the batch", registry=REGISTRY)
RUNNING = Gauge("ghost_requests_running", "Requests in the batch", registry=REGISTRY)
GENERATED = Counter("ghost_generated_tokens", "Tokens generated", registry=REGISTRY)
READ = Counter("ghost_prompt_tokens", "Tokens of prompts read", registry=REGISTRY)
POLL = 0.1  # seconds between looks at the queue of an idle engine


class Busy(Exception):
    """The queue is full."""


@dataclasses.dataclass(eq=False)
class _Job:
    """A text to generate, or ids to score, for a client that waits in an event loop."""

    of: Text | np.ndarray
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue
    sent: int = 0  # ids of the text
    abandoned: bool = False  # the client has left

    def send(self, event: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Scheduler:
    """Runs an engine for many clients. `start` and `stop` its thread; the coroutines may be called from any task.

    Args:
      waiting: requests that may wait for a row; more are refused.
    """

    def __init__(self, engine: Engine, waiting: int):
        self.engine = engine
        self._most = waiting
        self._waiting: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()  # guards the queue
        self._running: list[_Job] = []
        self._reading: tuple[_Job, Iterator[None]] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; texts that are not finished stay so."""
        self._stopped.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs: a fault of the device may end it."""
        return self._thread.is_alive()

    async def generate(self, text: Text) -> AsyncIterator[tuple[list[int], str | None]]:
        """Yields the new ids of a text, the last ones with why it ended. Raises Busy where the queue is full.

        Closing the iterator frees the row.
        """
        job, ended = self._submit(text), None
        try:
            while ended is None:
                ids, ended = _raised(await job.events.get())
                yield ids, ended
        finally:
            self._leave(job)

    async def score(self, ids: np.ndarray) -> Scores:
        """Returns the log-probabilities of ids [T]. Raises Busy where the queue is full."""
        job = self._submit(ids)
        try:
            return _raised(await job.events.get())
        finally:
            self._leave(job)

    def _submit(self, of: Text | np.ndarray) -> _Job:
        job = _Job(of, asyncio.get_running_loop(), asyncio.Queue())
        with self._changed:
            if len(self._waiting) >= self._most:
                raise Busy
            self._waiting.append(job)
            WAITING.set(len(self._waiting))
            self._changed.notify()
        return job

    def _leave(self, job: _Job) -> None:
        job.abandoned = True
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            WAITING.set(len(self._waiting))

    # ---- The thread ----

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._turn()
            except Exception as fault:  # a defect must not leave clients waiting for a thread that is gone
                failed = [*self._running, *([self._reading[0]] if self._reading else [])]
                for job in failed:
                    job.send(fault)
                self._running, self._reading = [], None
                self.engine.clear()

    def _turn(self) -> None:
        """Takes a request, reads a chunk of its prompt, and chooses an id of each text in the batch."""
        if self._reading is None and not self.engine.is_full:
            self._take()
        if self._reading:
            self._read()
        for job in [job for job in self._running if job.abandoned]:
            self.engine.drop(job.of)
            self._running.remove(job)
        if self._running:
            self.engine.step()
            for job in self._running:
                self._report(job)
            self._running = [job for job in self._running if not job.of.ended]
        RUNNING.set(len(self._running))

    def _take(self) -> None:
        with self._changed:
            if not self._waiting and not self._running:
                self._changed.wait(POLL)
            if not self._waiting:
                return
            job = self._waiting.popleft()
            WAITING.set(len(self._waiting))
        if isinstance(job.of, Text):
            READ.inc(len(job.of.prompt))
            self._reading = job, self.engine.admit(job.of)
            return
        READ.inc(len(job.of))
        try:
            job.send(self.engine.score(job.of))
        except Exception as fault:
            job.send(fault)

    def _read(self) -> None:
        job, chunks = self._reading
        if job.abandoned:
            self._reading = None
            return
        try:
            next(chunks)
        except StopIteration:
            self._reading = None
            self._report(job)
            if not job.of.ended:
                self._running.append(job)

    @staticmethod
    def _report(job: _Job) -> None:
        job.send((job.of.ids[job.sent :], job.of.ended))
        GENERATED.inc(len(job.of.ids) - job.sent)
        job.sent = len(job.of.ids)


def _raised(event: Any) -> Any:
    if isinstance(event, Exception):
        raise event
    return event
