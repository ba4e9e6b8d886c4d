"""Runs jobs on Slurm, as job arrays by submitit; each Slurm job does several of ours one after the other, and is safe to requeue.

Needs the extra ``slurm``, and a store that the nodes see: what is to be done, its answers and its logs lie in the folder ``.slurm`` there.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from unlearnlab.engine.beacon import Beacon, do
from unlearnlab.engine.jobs import KEEP_MEMORY, LATER, THREADS, Job, WorkerError, answer, one_thread, unpack, usable_cores
from unlearnlab.leases import unique
from unlearnlab.spec import InputError

POLL = 0.2  # seconds between two looks at what is done
TIMEOUTS = 20  # times that a Slurm job which ran out of its time goes on in another
AT_ONCE = 256  # Slurm jobs of an array that run at a time, unless it is said
ARRAY = 1000  # jobs of one array: more than 1 001 Slurm does not take unless its administrator lets it
SEEN, QUEUED_AGAIN = 15.0, 120.0  # seconds until another machine's answer is seen here at the latest, and until a preempted job is back in the queue
Work: TypeAlias = tuple[str, bool, bool, tuple[Job, ...]]  # the beacon's file, whether there must be a GPU, whether to wait for other runs, the jobs
WARNING = 90  # seconds before its end that a Slurm job is told: a fit that is resumed has saved its state at most a minute before


class Slurm:
    """Runs jobs in arrays of Slurm jobs, ``per_job`` of ours in each. ``cluster``: "slurm", or "local" for the same path in processes of this machine.

    ``minutes``: after which Slurm ends a job; it is queued again and goes on. ``gpus``, ``cpus``, ``memory`` (GB): of each Slurm job.
    ``workers``: how many of them may run at a time. Raises ``InputError`` where there is no Slurm.
    """

    def __init__(
        self,
        root: Path,
        *,
        cluster: Literal["slurm", "local"] = "slurm",
        partition: str | None = None,
        minutes: int = 60,
        gpus: int = 0,
        cpus: int = 1,
        memory: float | None = None,
        per_job: int = 1,
        workers: int | None = None,
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise InputError("engine 'slurm' needs submitit: pip install 'unlearnlab[slurm]'") from error
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise InputError("engine 'slurm' finds no command sbatch on this machine; start from a login node, or try it here with --slurm.cluster local")
        for name, value in {"workers": workers, "jobs per Slurm job": per_job, "cpus": cpus, "minutes": minutes}.items():
            if value is not None and value < 1:
                raise InputError(f"{name} = {value} is out of range: expected at least 1")
        local = cluster == "local"
        self.workers = workers or (usable_cores() if local else AT_ONCE)
        self.device = "cuda" if gpus else "cpu"
        self._per_job, self._gpu, self._local = per_job, bool(gpus), local
        self._failed = False
        self._folder = root / ".slurm" / unique()
        self._executor = submitit.AutoExecutor(folder=self._folder, cluster=cluster, **({} if local else {"slurm_max_num_timeout": TIMEOUTS}))
        asked: dict[str, Any] = {"name": "unlearnlab", "timeout_min": minutes, "cpus_per_task": cpus} | ({"gpus_per_node": gpus} if gpus else {})
        if memory is not None:
            asked["mem_gb"] = memory
        if not local:
            settings = "".join(f"export {name}={value}\n" for name, value in {**THREADS, **KEEP_MEMORY}.items()).splitlines()
            asked |= {"slurm_array_parallelism": self.workers, "slurm_setup": settings, "slurm_signal_delay_s": WARNING}
            asked |= {"slurm_additional_parameters": {"requeue": True}} | ({"slurm_partition": partition} if partition else {})
        self._executor.update_parameters(**asked)
        self._beacon = Beacon(root)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as Slurm jobs finish. What is not finished is cancelled where one fails, or where nobody listens any more."""
        waiting, later = _cut(range(len(jobs)), self._per_job), list[int]()  # what another run is at comes last
        under, dead, tried, patient = dict[Any, tuple[int, ...]](), dict[Any, float](), set[tuple[int, ...]](), False
        try:
            while waiting or later or under:
                if not waiting and later:
                    waiting, later, patient = _cut(later, self._per_job), [], True
                # an array holds itself back, and Slurm takes but so many jobs in one
                room = self.workers - len(under) if self._local else ARRAY if len(under) < self.workers else 0
                if waiting and room > 0:
                    ready = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                    made = self._submit([tuple(jobs[at] for at in batch) for batch in ready], patient=patient)
                    under |= dict(zip(made, ready, strict=True))
                done = [job for job in under if self._done(job, dead)]
                for job in done:
                    batch = under.pop(job)
                    answers = self._answers(job)
                    if answers is None and batch in tried:
                        raise WorkerError(f"job '{jobs[batch[0]].label}': its Slurm job went away twice; its logs: {job.paths.stderr}")
                    if answers is None:
                        tried.add(batch)
                        waiting.appendleft(batch)
                        continue
                    found = [(at, self._unpacked(packed)) for at, packed in zip(batch, answers, strict=True)]
                    later += [at for at, result in found if result is LATER]
                    yield from ((at, result) for at, result in found if result is not LATER)
                if not done and under:
                    time.sleep(POLL)
        finally:
            for job in under:
                job.cancel(check=False)

    def close(self) -> None:
        """Remove what was asked of Slurm and answered; where a job failed all of it stays, with the logs."""
        self._beacon.close()
        if not self._failed:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, batches: Sequence[tuple[Job, ...]], *, patient: bool) -> list[Any]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        work = [(self._beacon.path, self._gpu, patient, batch) for batch in batches]
        try:
            with one_thread(KEEP_MEMORY):  # processes of this machine inherit it; on nodes the set-up of a job does the same
                made: list[Any] = self._executor.map_array(_Batch(), work)
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError(f"Slurm did not take the jobs: {' '.join(str(error).split())}") from error
        return made

    def _done(self, job: Any, dead: dict[Any, float]) -> bool:
        """Has a Slurm job answered, or is it gone for so long that no answer will come? ``dead``: since when, of those that seem so."""
        if job.paths.result_pickle.exists():
            return True
        # submitit takes a preempted job to be queued again; where a site does not do that, it stays so
        preempted = not self._local and job.watcher.get_state(job.job_id, mode="cache") == "PREEMPTED"
        if not job.done() and not preempted:
            dead.pop(job, None)
            return False
        since = dead.setdefault(job, time.monotonic())
        return self._local or time.monotonic() - since > (QUEUED_AGAIN if preempted else SEEN)

    def _answers(self, job: Any) -> list[bytes] | None:
        """What a Slurm job that is done has answered; None where it died."""
        if job.paths.result_pickle.exists():
            if (error := job.exception()) is None:
                found: list[bytes] = job.result()
                return found
            self._failed = True
            words = [line for line in str(error).splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
            raise WorkerError(f"Slurm job {job.job_id} failed ({words[-1] if words else 'for no reason it gave'}); its logs: {job.paths.stderr}")
        self._failed = True
        if not job.paths.stderr.exists() and not job.paths.stdout.exists():
            raise InputError(
                f"Slurm job {job.job_id} left neither an answer nor a log ({job.state}): its node does not see the store {self._beacon.root}, it was cancelled,"
                " or its settings were refused; choose a folder on a file system that all nodes share, with $UNLEARNLAB_STORE"
            )
        return None

    def _unpacked(self, packed: bytes) -> Any:
        try:
            return unpack(packed)
        except Exception:
            self._failed = True
            raise


def _cut(jobs: Sequence[int], per_job: int) -> deque[tuple[int, ...]]:
    return deque(tuple(jobs[start : start + per_job]) for start in range(0, len(jobs), per_job))


class _Batch:
    """What a Slurm job does: several of our jobs. Told that its time is up, it is queued again as it is."""

    def __call__(self, work: Work) -> list[bytes]:
        from submitit.core.utils import UncompletedJobError

        beacon, gpu, patient, jobs = work
        # how submitit ends a job from within, to queue it again; a job must not take it for its own failure
        through = SystemExit, UncompletedJobError
        return [answer(Job(do, (beacon, gpu, job)), patient=patient, through=through) for job in jobs]

    def checkpoint(self, work: Work) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, work)
