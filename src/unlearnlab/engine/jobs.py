"""What a job and an engine are, and how a process does a job, wherever it runs.

Results do not depend on where: every job runs with one intra-op thread, since another number of threads adds up floats in
another order. A job's arguments and result travel between processes, so they should be small: settings and keys there, keys
back; tensors go through the store. A job is done again where its process died, so it must be safe to run twice.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from unlearnlab.leases import Busy, impatient

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# glibc hands blocks of some megabytes back to the system at once and asks for them again in the next training step
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**28)}


@dataclass(frozen=True)
class Job:
    """A call to make somewhere: ``function`` stands at the top of an importable module, ``label`` names the job in errors."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    label: str = ""


class Engine(Protocol):
    """Whatever runs jobs: yields (index of the job, its result) as they finish, in any order.

    ``workers``: how many jobs run at a time, as far as that is known; ``device``: what they compute on, "cpu" or "cuda".
    """

    @property
    def workers(self) -> int: ...

    @property
    def device(self) -> str: ...

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]: ...


class WorkerError(RuntimeError):
    """The process that ran a job died, and so did the one that tried again."""


class _Later:
    """In the place of a job's result: another process is at it, so that it is better to do something else first."""


LATER = _Later()


def call(job: Job, *, patient: bool) -> Any:
    """Do a job in this process, on one thread. One that is not ``patient`` gives LATER for a job that another process is doing."""
    with one_thread(), contextlib.nullcontext() if patient else impatient():
        try:
            return job.function(*job.args)
        except Busy:
            return LATER


def answer(job: Job, *, patient: bool, through: tuple[type[BaseException], ...] = ()) -> bytes:
    """Do a job and pack what came of it, whatever that is (exceptions of some kinds go ``through``); ``unpack`` takes it apart."""
    try:
        found = call(job, patient=patient)
        return pickle.dumps((True, None if found is LATER else found, found is LATER))
    except through:
        raise
    except BaseException as error:
        error.add_note("In the worker process:\n" + traceback.format_exc())
        try:
            packed = pickle.dumps((False, error, False))
            pickle.loads(packed)  # some exceptions can be packed but not unpacked
        except Exception:
            packed = pickle.dumps((False, RuntimeError("\n".join([f"{type(error).__name__}: {error}", *error.__notes__])), False))
        return packed
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def unpack(packed: bytes) -> Any:
    """The result of a job, or LATER; raises what the job raised."""
    fine, found, later = pickle.loads(packed)
    if not fine:
        raise found
    return LATER if later else found


def usable_cores() -> int:
    """How many cores this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no quota
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


@contextlib.contextmanager
def one_thread(more: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Do numerics with one thread, here and in processes started meanwhile (these with ``more`` in their environment); then as before."""
    given = {**THREADS, **more}
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
