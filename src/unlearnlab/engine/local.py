"""Runs many independent jobs: in this process, or spread over a pool of processes that stay alive.

Results do not depend on which: every job runs with one intra-op thread, since another number of
threads adds up floats in another order. A job's arguments and result travel between processes, so
they should be small: settings and keys there, keys back; tensors go through the store. POSIX only.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process, resource_tracker
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

from unlearnlab.spec import InputError

_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# glibc hands blocks of some megabytes back to the system at once and asks for them again in the next training step
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**28)}


@dataclass(frozen=True)
class Job:
    """A call to make somewhere: ``function`` stands at the top of an importable module, ``label`` names the job in errors."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    label: str = ""


class Engine(Protocol):
    """Whatever runs jobs: yields (index of the job, its result) as they finish, in any order."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]: ...


class WorkerError(RuntimeError):
    """The process that ran a job died, and so did the one that tried again."""


class Local:
    """Runs jobs on this machine: with one worker in this process, else in spawned processes, kept until ``close``.

    An exception in a job is raised here with its type; jobs not yet finished are then dropped, as
    they are when the caller is interrupted or stops listening.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = usable_cores() if workers is None else workers
        if self.workers < 1:
            raise InputError(f"workers = {workers} is out of range: expected at least 1")
        self._idle: list[_Worker] = []
        self._busy: dict[connection.Connection, tuple[_Worker, int]] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as jobs finish. Nothing starts before the first is asked for."""
        if self.workers > 1:
            yield from self._spread(jobs)
            return
        for index, job in enumerate(jobs):
            with _one_thread():
                result = job.function(*job.args)
            yield index, result

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
        waiting, tried, done = deque(range(len(jobs))), set[int](), list[tuple[int, Any]]()
        self._idle = [worker for worker in self._idle if worker.process.is_alive()]
        # All before the first job is handed out: they start up side by side.
        self._idle += [_Worker() for _ in range(min(self.workers, len(jobs)) - len(self._idle))]
        try:
            while True:
                while waiting and len(self._busy) < self.workers:
                    worker, index = self._idle.pop() if self._idle else _Worker(), waiting.popleft()
                    self._busy[worker.pipe] = worker, index
                    worker.give(jobs[index])
                yield from done  # after handing out: nobody idles while the caller is busy
                if not self._busy:
                    return
                done = []
                for pipe in connection.wait(list(self._busy)):
                    worker, index = self._busy[pipe]  # type: ignore[index]
                    answer = worker.take()
                    del self._busy[worker.pipe]
                    if answer is not None:
                        self._idle.append(worker)
                        fine, result = pickle.loads(answer)
                        if not fine:
                            raise result
                        done.append((index, result))
                    elif index not in tried:
                        tried.add(index)
                        waiting.appendleft(index)
                    else:
                        raise WorkerError(f"job '{jobs[index].label}': its worker process died twice ({worker.kill()})")
        finally:
            for worker, _ in self._busy.values():
                worker.kill()
            self._busy.clear()


class _Worker:
    """A spawned process that answers one job at a time."""

    def __init__(self) -> None:
        context, main = get_context("spawn"), sys.modules["__main__"]
        if getattr(main, "__file__", None) == "<stdin>":
            del main.__file__  # else the new process would try to import it
        resource_tracker.ensure_running()  # would unblock SIGINT below, if it had to start there
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C must not end it while it starts up
        try:
            with _one_thread(_KEEP_MEMORY):  # inherited as well, before anything can import torch there
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()

    def give(self, job: Job) -> None:
        message = pickle.dumps((job.function, job.args))
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


def usable_cores() -> int:
    """How many cores this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no quota
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


@contextlib.contextmanager
def _one_thread(more: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Do numerics with one thread, here and in processes started meanwhile (these with ``more`` in their environment); then as before."""
    given = {**_THREADS, **more}
    before, torch = {name: os.environ.get(name) for name in given}, sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    try:
        os.environ.update(given)
        if threads != 1:
            torch.set_num_threads(1)  # type: ignore[union-attr]
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        if threads != 1:
            torch.set_num_threads(threads)  # type: ignore[union-attr]


def _work(pipe: connection.Connection) -> None:
    """What a worker process does: answer jobs until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes()))


def _leave_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)  # the job's thread does not listen


def _answer(message: bytes) -> bytes:
    """Do the job and pack (True, result) or (False, exception)."""
    try:
        function, args = pickle.loads(message)
        with _one_thread():
            return pickle.dumps((True, function(*args)))
    except BaseException as error:
        error.add_note("In the worker process:\n" + traceback.format_exc())
        try:
            packed = pickle.dumps((False, error))
            pickle.loads(packed)  # some exceptions can be packed but not unpacked
        except Exception:
            packed = pickle.dumps((False, RuntimeError("\n".join([f"{type(error).__name__}: {error}", *error.__notes__]))))
        return packed
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
