"""Runs jobs on this machine: in this process, or spread over a pool of processes that stay alive (importing torch takes seconds). POSIX only."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection, get_context, parent_process, resource_tracker
from typing import Any, Self

from unlearnlab.engine.jobs import KEEP_MEMORY, LATER, Job, WorkerError, answer, call, one_thread, unpack, usable_cores
from unlearnlab.spec import InputError


class Local:
    """Runs jobs on this machine: with one worker in this process, else in spawned processes, kept until ``close``.

    An exception in a job is raised here with its type; jobs not yet finished are then dropped, as
    they are when the caller is interrupted or stops listening. Where there are GPUs there is one worker for each, unless more are
    asked for; they share the GPUs evenly. Jobs that a run elsewhere on the same store is at come last.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._gpus = gpus()
        self.workers = len(self._gpus) or usable_cores() if workers is None else workers
        if self.workers < 1:
            raise InputError(f"workers = {workers} is out of range: expected at least 1")
        self.device = "cuda" if self._gpus else "cpu"
        self._idle: list[_Worker] = []
        self._busy: dict[connection.Connection, tuple[_Worker, int]] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as jobs finish. Nothing starts before the first is asked for."""
        if self.workers > 1:
            yield from self._spread(jobs)
            return
        later = []
        for index, job in enumerate(jobs):
            found = call(job, patient=False)
            if found is LATER:
                later.append(index)
            else:
                yield index, found
        for index in later:
            yield index, call(jobs[index], patient=True)

    def close(self) -> None:
        """End the worker processes at once; a later run starts new ones."""
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            worker.kill()
        self._idle.clear()
        self._busy.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spread(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        if self._busy:
            raise RuntimeError("this engine is still running jobs; finish or close that run before starting another")
        waiting, later, tried, done = deque(range(len(jobs))), deque[int](), set[int](), list[tuple[int, Any]]()
        self._idle = [worker for worker in self._idle if worker.process.is_alive()]
        # All before the first job is handed out: they start up side by side.
        while len(self._idle) < min(self.workers, len(jobs)):
            self._idle.append(self._hire())
        try:
            while True:
                while (waiting or later) and len(self._busy) < self.workers:
                    worker, patient = self._idle.pop() if self._idle else self._hire(), not waiting
                    index = (waiting or later).popleft()
                    self._busy[worker.pipe] = worker, index
                    worker.give(jobs[index], patient=patient)
                yield from done  # after handing out: nobody idles while the caller is busy
                if not self._busy:
                    return
                done = []
                for pipe in connection.wait(list(self._busy)):
                    worker, index = self._busy[pipe]  # type: ignore[index]
                    packed = worker.take()
                    del self._busy[worker.pipe]
                    if packed is not None:
                        self._idle.append(worker)
                        if (found := unpack(packed)) is LATER:
                            later.append(index)
                        else:
                            done.append((index, found))
                    elif index not in tried:
                        tried.add(index)
                        waiting.appendleft(index)
                    else:
                        raise WorkerError(f"job '{jobs[index].label}': its worker process died twice ({worker.kill()})")
        finally:
            for worker, _ in self._busy.values():
                worker.kill()
            self._busy.clear()

    def _hire(self) -> _Worker:
        """A new worker, on the GPU that fewest have: that of one which died, if there was one."""
        taken = Counter(worker.gpu for worker in [*self._idle, *(worker for worker, _ in self._busy.values())])
        return _Worker(min(self._gpus, key=taken.__getitem__, default=None))


class _Worker:
    """A spawned process that answers one job at a time, and sees no GPU but the one it is given."""

    def __init__(self, gpu: str | None) -> None:
        self.gpu, place = gpu, {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        context, main = get_context("spawn"), sys.modules["__main__"]
        if getattr(main, "__file__", None) == "<stdin>":
            del main.__file__  # else the new process would try to import it
        resource_tracker.ensure_running()  # would unblock SIGINT below, if it had to start there
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C must not end it while it starts up
        try:
            with one_thread({**KEEP_MEMORY, **place}):  # inherited as well, before anything can import torch there
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()

    def give(self, job: Job, *, patient: bool) -> None:
        message = pickle.dumps((job, patient))
        with contextlib.suppress(OSError):  # already dead: seen when its answer is read
            self.pipe.send_bytes(message)

    def take(self) -> bytes | None:
        """The packed answer, or None where the process died."""
        try:
            return self.pipe.recv_bytes()
        except (EOFError, OSError):
            return None

    def kill(self) -> str:
        """End the process, which may be dead already; returns what it died of."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode or 0
        if code < 0:
            return f"{signal.Signals(-code).name}; if memory ran out, use fewer workers"
        return f"exit code {code}; a script that starts workers must do so under: if __name__ == '__main__'"


def gpus() -> list[str]:
    """What to call each GPU that this process may use in $CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def _work(pipe: connection.Connection) -> None:
    """What a worker process does: answer jobs until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = pipe.recv_bytes()
            try:
                job, patient = pickle.loads(message)
            except BaseException as error:  # its module cannot be imported here
                job, patient = Job(_raise, (error,)), True
            pipe.send_bytes(answer(job, patient=patient))


def _raise(error: BaseException) -> None:
    raise error


def _leave_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)  # the job's thread does not listen
