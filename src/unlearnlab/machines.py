"""Where a command does its work, as it is asked for on the command line: the engine, and what it needs to know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter

from unlearnlab.engine import Engine, Local, usable_cores
from unlearnlab.engine.local import gpus
from unlearnlab.spec import InputError


def _of(engine: str, text: str, name: str | None = None) -> Parameter:
    return Parameter(name=name, help=f"{engine}: {text}", show_default=False)


class Room(NamedTuple):
    """How much is done at a time: by how many workers, with how many GPUs each (or what share of one), each with how many jobs in a row."""

    workers: int
    gpus: float
    jobs_each: int


@dataclass(frozen=True)
class OnSlurm:
    """What Slurm is asked for."""

    cluster: Annotated[Literal["slurm", "local"], _of("slurm", "slurm, or local to try the same path in processes of this machine")] = "slurm"
    partition: Annotated[str | None, _of("slurm", "the partition")] = None
    time: Annotated[int, _of("slurm", "minutes after which Slurm ends a job, which is queued again and goes on (60)")] = 60
    gpus: Annotated[int, _of("slurm", "GPUs of each Slurm job (0)")] = 0
    cpus: Annotated[int, _of("slurm", "cores of each Slurm job (1)")] = 1
    memory: Annotated[float | None, _of("slurm", "GB of each Slurm job")] = None
    per_job: Annotated[int, _of("slurm", "jobs of ours that each Slurm job does, one after the other (1)")] = 1


@dataclass(frozen=True)
class Machines:
    """The engine and its settings."""

    workers: Annotated[
        int | None,
        Parameter(help="jobs at a time: processes on this machine (one for each core, or GPU); Slurm jobs of an array", show_default=False),
    ] = None
    engine: Annotated[Literal["local", "ray", "slurm"], Parameter(help="where the work is done: on this machine, a Ray cluster, Slurm")] = "local"
    address: Annotated[str | None, _of("ray", "a running cluster: its HOST:PORT, or auto for the one on this machine; without it one is started here")] = None
    gpus_per_job: Annotated[float, _of("ray", "GPUs of each job (0); 0.25 puts four jobs on a GPU", "--gpus-per-job")] = 0
    cpus_per_job: Annotated[float, _of("ray", "cores of each job (1)", "--cpus-per-job")] = 1
    memory_per_job: Annotated[float | None, _of("ray", "GB of each job", "--memory-per-job")] = None
    slurm: OnSlurm = field(default_factory=OnSlurm)

    def check(self) -> None:
        """Raise ``InputError`` for a setting of an engine that is not the one asked for, or for a number that none can have."""
        counts = {"workers": self.workers, "slurm.time": self.slurm.time, "slurm.cpus": self.slurm.cpus, "slurm.per-job": self.slurm.per_job}
        sizes = {"cpus-per-job": self.cpus_per_job, "memory-per-job": self.memory_per_job, "slurm.memory": self.slurm.memory}
        shares = {"gpus-per-job": self.gpus_per_job, "slurm.gpus": self.slurm.gpus}
        for expected, least, named in (("at least 1", 1.0, counts), ("a number more than 0", math.ulp(0.0), sizes), ("0 or more", 0.0, shares)):
            for name, value in named.items():
                if value is not None and not least <= value < math.inf:
                    raise InputError(f"--{name} {value} is out of range: expected {expected}")
        if self.address is not None and self.workers is not None:
            raise InputError(f"--workers {self.workers} is for a cluster started here: the one at {self.address} runs as many jobs as it has room for")
        if self.slurm.cluster == "local" and self.slurm.partition is not None:
            raise InputError(f"--slurm.partition {self.slurm.partition} is for a real Slurm, and --slurm.cluster is local")
        plain = Machines()
        of_ray = [name for name in ("address", "gpus_per_job", "cpus_per_job", "memory_per_job") if getattr(self, name) != getattr(plain, name)]
        of_slurm = [f"slurm.{one.name}" for one in fields(OnSlurm) if getattr(self.slurm, one.name) != getattr(plain.slurm, one.name)]
        for engine, given in {"ray": of_ray, "slurm": of_slurm}.items():
            if given and self.engine != engine:
                raise InputError(f"--{given[0].replace('_', '-')} is for --engine {engine}, and the engine is {self.engine}")

    @property
    def gpus(self) -> float:
        """Of each job: a share of one, or several."""
        if self.engine != "local":
            return {"ray": self.gpus_per_job, "slurm": float(self.slurm.gpus)}[self.engine]
        return min(1.0, len(gpus()) / self.expected_workers())

    @contextmanager
    def opened(self, root: Path) -> Iterator[Engine]:
        """The engine, for work on the store at ``root``; closed in the end, and what it still runs is cancelled."""
        self.check()
        with self._open(root) as engine:
            yield engine

    def _open(self, root: Path) -> Any:
        if self.engine == "ray":
            from unlearnlab.engine.on_ray import Ray

            memory = None if self.memory_per_job is None else round(self.memory_per_job * 1e9)
            return Ray(root, self.address, workers=self.workers, cpus=self.cpus_per_job, gpus=self.gpus_per_job, memory=memory)
        if self.engine == "slurm":
            from unlearnlab.engine.on_slurm import Slurm

            asked = {"cluster": self.slurm.cluster, "partition": self.slurm.partition, "minutes": self.slurm.time, "per_job": self.slurm.per_job}
            return Slurm(root, **asked, gpus=self.slurm.gpus, cpus=self.slurm.cpus, memory=self.slurm.memory, workers=self.workers)  # type: ignore[arg-type]
        return Local(self.workers)

    def expected_workers(self) -> int:
        """How many jobs would run at a time, without opening anything."""
        if self.workers is not None:
            return self.workers
        if self.engine == "slurm" and self.slurm.cluster == "slurm":
            from unlearnlab.engine.on_slurm import AT_ONCE

            return AT_ONCE
        if self.engine == "local":
            return Local().workers
        cores, here = usable_cores(), len(gpus())
        return max(1, int(min(cores / self.cpus_per_job, here / self.gpus_per_job if self.gpus_per_job else math.inf)))

    @property
    def jobs_each(self) -> int:
        """How many jobs one worker does in a row, before another may have any of them."""
        return self.slurm.per_job if self.engine == "slurm" else 1
