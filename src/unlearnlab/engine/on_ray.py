"""Runs jobs on a Ray cluster: Ray places them, retries them and takes in machines that join late; tensors go through the store.

Needs the extra ``ray``, this package in the same version on every machine, and a store that all of them see.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from unlearnlab.engine.beacon import Beacon, do
from unlearnlab.engine.jobs import KEEP_MEMORY, LATER, THREADS, Job, WorkerError, answer, unpack, usable_cores
from unlearnlab.spec import InputError

RETRIES = 3  # of a job whose process or machine went away
REACHED = 5.0  # seconds to answer a knock
SETTINGS = 4  # the first frame of either side in HTTP/2
STARTED = 60.0  # seconds for every machine of the cluster to run a first task


class Ray:
    """Runs jobs on the cluster at ``address``: HOST:PORT, "auto" for the one that runs on this machine, None to start one here and stop it again.

    ``cpus``, ``gpus``, ``memory`` (bytes): what Ray sets aside for a job; a quarter of a GPU puts four jobs on each. ``workers``: cores of a
    cluster started here. Raises ``InputError`` where no cluster answers, where it has no room for one job, or where a machine of it
    does not see the store at ``root`` or has another version of this package.
    """

    def __init__(
        self, root: Path, address: str | None = None, *, workers: int | None = None, cpus: float = 1, gpus: float = 0, memory: int | None = None
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("engine 'ray' needs Ray: pip install 'unlearnlab[ray]'") from error
        if workers is not None and workers < 1:
            raise InputError(f"workers = {workers} is out of range: expected at least 1")
        if gpus > 1 and gpus != int(gpus):
            raise InputError(f"gpus per job = {gpus:g}: Ray shares one GPU among jobs, or gives a job several whole ones; give at most 1, or a whole number")
        if ray.is_initialized():
            raise RuntimeError("this process is connected to a Ray cluster already, and can be to one only; close that engine first")
        self._ray, self._cpus, self._gpus, self._memory = ray, cpus, gpus, memory
        self._wants = {name: wants for name, wants in (("CPU", cpus), ("GPU", gpus), ("memory", memory or 0)) if wants}
        self.device = "cuda" if gpus else "cpu"
        self._open: dict[Any, int] = {}
        self._beacon = Beacon(root)
        try:
            self._join(address, workers or usable_cores())
            self._check_room()
            self._check_machines()
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """How many jobs the cluster has room for as it is now."""
        return max(1, sum(self._fit(node) for node in self._nodes()))

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as jobs finish. What is not finished is cancelled where one fails, or where nobody listens any more."""
        if self._open:
            raise RuntimeError("this engine is still running jobs; finish or close that run before starting another")
        ray, cloudpickle = self._ray, self._ray.cloudpickle
        remote, place = ray.remote(_work), {"num_cpus": self._cpus, "num_gpus": self._gpus, "memory": self._memory, "max_retries": RETRIES}
        packed = [cloudpickle.dumps(job) for job in jobs]  # all of them first: what cannot travel is refused before anything runs

        def submit(index: int, *, patient: bool) -> None:
            task = remote.options(**place, name=jobs[index].label or "job").remote(self._beacon.path, bool(self._gpus), packed[index], patient)
            self._open[task] = index

        try:
            for index in range(len(jobs)):
                submit(index, patient=False)
            while self._open:
                for one in ray.wait(list(self._open), num_returns=1)[0]:
                    index = self._open.pop(one)
                    try:
                        found = unpack(ray.get(one))
                    except ray.exceptions.RayError as error:
                        raise _lost(jobs[index], error) from error
                    if found is LATER:
                        submit(index, patient=True)
                    else:
                        yield index, found
        finally:
            for one in self._open:
                with contextlib.suppress(Exception):  # the cluster may be gone
                    ray.cancel(one, force=True)
            self._open.clear()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()
        self._beacon.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _join(self, address: str | None, workers: int) -> None:
        found = _last_started() if address == "auto" else address
        if found is not None:
            _knock(found)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray would else say what it starts, and on which ports; errors still come
        held: dict[str, Any] = {"logging_level": "ERROR", "runtime_env": {"env_vars": {**THREADS, **KEEP_MEMORY}}}
        try:
            if address is None:
                self._ray.init("local", num_cpus=workers, include_dashboard=False, **held)
            else:
                self._ray.init(address, **held)
        except (ConnectionError, RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
            words = str(error).strip().splitlines()[0]
            if address is None:
                raise InputError(f"Ray did not start on this machine: {words}") from error
            hint = "start one with: ray start --head" if address == "auto" else "is it the address of a Ray cluster's head, with this version of Ray?"
            raise InputError(f"no Ray cluster at address '{address}': {words}; {hint}") from error

    def _nodes(self) -> list[dict[str, float]]:
        """What each machine of the cluster has."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fit(self, node: Mapping[str, float]) -> int:
        """How many jobs a machine has room for: a job runs on one."""
        return min(int(node.get(name, 0) / wants + 1e-9) for name, wants in self._wants.items())

    def _check_room(self) -> None:
        nodes = self._nodes()
        if any(self._fit(node) for node in nodes):
            return
        asked = ", ".join(f"{wants:g} {'bytes of memory' if name == 'memory' else name}" for name, wants in self._wants.items())
        most = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}" for name in self._wants)
        raise InputError(f"a job asks for {asked}, and no machine of the Ray cluster has that (at most {most}); ask for less, or add such machines first")

    def _check_machines(self) -> None:
        ray, held, nothing = self._ray, {}, pickle.dumps(Job(os.getpid))
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in (node for node in ray.nodes() if node["Alive"]):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_work).options(num_cpus=0, scheduling_strategy=there).remote(self._beacon.path, False, nothing, True)
            held[task] = node["NodeManagerHostname"]
        _, silent = ray.wait(list(held), num_returns=len(held), timeout=STARTED)
        if silent:
            raise InputError(f"machine '{held[silent[0]]}' of the Ray cluster ran no task within {STARTED:.0f} s; is unlearnlab installed on it?")
        for one, host in held.items():
            try:
                packed = ray.get(one)
            except Exception as error:
                words = str(error).strip().splitlines()[-1]
                raise InputError(f"machine '{host}' of the Ray cluster cannot run unlearnlab ({words}); install the same version there") from error
            unpack(packed)


def _work(beacon: str, gpu: bool, packed: bytes, patient: bool) -> bytes:
    """What a worker of the cluster does; a machine that joined late is looked at before its first job."""
    return answer(Job(_unpacked, (beacon, gpu, packed)), patient=patient)


def _unpacked(beacon: str, gpu: bool, packed: bytes) -> Any:
    return do(beacon, gpu, pickle.loads(packed))


def _last_started() -> str | None:
    """Where Ray itself would look first for the cluster of this machine; what it finds there may be long gone."""
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    return os.environ.get("RAY_ADDRESS") or (file.read_text().strip() if file.exists() else "") or None


def _knock(address: str) -> None:
    """Does anybody listen there, and speak as Ray's head does (gRPC, so HTTP/2)? Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise InputError(f"address '{address}' is none of a Ray cluster: expected HOST:PORT (as printed by ray start --head), or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED) as line:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0)))
            said = line.recv(9)
    except (OSError, OverflowError) as error:
        raise InputError(f"nothing answers at address '{address}' ({error}); is the cluster up, and may this machine reach it?") from error
    if said[3:4] != bytes((SETTINGS,)):
        raise InputError(
            f"what answers at address '{address}' is no Ray cluster; expected HOST:PORT as printed by ray start --head (6379 unless it was told another)"
        )


def _lost(job: Job, error: Exception) -> Exception:
    words = str(error).strip().splitlines()
    return WorkerError(f"job '{job.label}': its worker went away and so did those that tried again ({type(error).__name__}: {words[0] if words else ''})")
