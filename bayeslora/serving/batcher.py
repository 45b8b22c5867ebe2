"""Questions of many callers in one pass of the model: collected for a moment, answered together, refused one by one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from bayeslora.errors import RunError, UsageError, in_one_line
from bayeslora.serving.answer import Answer
from bayeslora.serving.predictor import Predictor, Prepared


class BusyError(RunError):
    """There are as many questions in flight as are allowed, or the server is about to stop."""


@dataclass
class _Job:
    given: Sequence[Mapping[str, Any]]
    deadline: float  # of the monotonic clock
    future: Future[list[Answer]] = field(default_factory=Future)
    prepared: list[Prepared] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """Tell the caller what went wrong."""
        with suppress(InvalidStateError):  # nobody waits for it any longer
            self.future.set_exception(error)

    def done(self, answers: list[Answer]) -> None:
        """Hand the caller the answers."""
        with suppress(InvalidStateError):
            self.future.set_result(answers)


class Batcher:
    """One thread that owns a predictor, and a queue in front of it.

    A pass takes what is there, and waits ``wait`` seconds for more as long as its batch is not full. A caller whose
    question cannot be asked is told so and leaves the others alone; one who has gone, or whose deadline has passed, is
    not answered.

    Args:
        predictor: Answers questions; used by this thread alone.
        most: Questions in flight at most; a call beyond is refused at once.
        wait: Seconds that a batch is held open.
        size: Questions of a batch, which the predictor answers in passes of the run's batch size; None takes that.
    """

    def __init__(self, predictor: Predictor, most: int = 512, wait: float = 0.004, size: int | None = None) -> None:
        self.predictor, self.most, self.wait = predictor, most, wait
        self.size = predictor.kept.batch_size if size is None else size
        self.in_flight = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="bayeslora-batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and not self._closed

    def submit(self, given: Sequence[Mapping[str, Any]], seconds: float) -> Future[list[Answer]]:
        """Ask some questions; their answers come as one future.

        Args:
            given: The questions, as :meth:`Predictor.question` takes them.
            seconds: After which nobody waits for them any longer.

        Raises:
            BusyError: too many are in flight, or the batcher was closed.
        """
        with self._lock:
            if self._closed:
                raise BusyError("the server is about to stop; ask another one, or later")
            if self.in_flight + len(given) > self.most:
                raise BusyError(f"{self.in_flight} questions are in flight, {self.most} are allowed; ask later")
            self.in_flight += len(given)
            job = _Job(given, time.monotonic() + seconds)
            job.future.add_done_callback(lambda _: self._left(len(given)))
            self._queue.put(job)
        return job.future

    def close(self) -> None:
        """Take no more questions, refuse those that wait, and end the thread after the pass that runs."""
        with self._lock:
            self._closed = True
        self._queue.put(None)

    def _left(self, count: int) -> None:
        with self._lock:
            self.in_flight -= count

    # --- the thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (jobs := self._next()) is not None:
            self._answer([job for job in jobs if self._ready(job)])
        while not self._queue.empty():
            if (job := self._queue.get()) is not None:
                job.fail(BusyError("the server was stopped; ask another one, or later"))

    def _next(self) -> list[_Job] | None:
        """What the next pass is made of; None where the batcher was closed."""
        first = self._queue.get()
        if first is None or self._closed:
            self._queue.put(first)
            return None
        jobs, count, until = [first], len(first.given), time.monotonic() + self.wait
        while count < self.size:
            try:
                job = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._queue.put(None)
                break
            jobs.append(job)
            count += len(job.given)
        return jobs

    def _ready(self, job: _Job) -> bool:
        """Turn a job's questions into tokens; False where it is refused, or nobody waits for it."""
        if job.future.cancelled():
            return False
        if time.monotonic() > job.deadline:
            job.fail(BusyError("the answer was not there in time; ask later, or fewer questions"))
            return False
        try:
            questions = [self.predictor.question(one, fallback_id=str(place)) for place, one in enumerate(job.given)]
            job.prepared = self.predictor.prepare(questions)
        except Exception as error:
            job.fail(error if isinstance(error, UsageError) else RunError(in_one_line(error)))
            return False
        return True

    def _answer(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            answers = self.predictor.answer([one for job in jobs for one in job.prepared])
        except Exception as error:
            if len(jobs) > 1:  # one of them may be the reason: each by itself
                for job in jobs:
                    self._answer([job])
                return
            jobs[0].fail(RunError(in_one_line(error)))
            return
        start = 0
        for job in jobs:
            job.done(answers[start : start + len(job.prepared)])
            start += len(job.prepared)
