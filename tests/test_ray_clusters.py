"""Ray clusters that grow, that the command starts itself, and that do not do what is asked of them."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import engine_jobs as jobs
from unlearnlab.engine import Job
from unlearnlab.engine.beacon import Beacon
from unlearnlab.engine.on_ray import Ray
from unlearnlab.spec import InputError

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture(scope="module", autouse=True)
def at_home() -> Iterator[None]:
    """Workers find the jobs of the tests as those of a cluster find this package: it is installed there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        yield


def started(**head: Any) -> Any:
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **head})


@pytest.fixture
def cluster() -> Iterator[Any]:
    held = started(num_cpus=2)
    yield held
    held.shutdown()


def test_a_node_that_joins_late_takes_work(tmp_path: Path) -> None:
    held = started()
    try:
        with Ray(tmp_path, held.address) as engine:
            nodes, running = list[str](), engine.run([Job(jobs.where, (n,)) for n in range(40)])
            nodes.append(next(running)[1])
            held.add_node(num_cpus=1)
            nodes += [node for _, node in running]
        assert len(set(nodes)) == 2
        assert len(nodes) == 40
    finally:
        held.shutdown()


# ---- a cluster that the command starts, and Ctrl-C

COMMAND = [sys.executable, "-m", "unlearnlab", "run", "digits", "--engine", "ray", "--workers", "2"]


def test_the_command_starts_a_cluster_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    environment = {**os.environ, "UNLEARNLAB_STORE": str(tmp_path), "RAY_TMPDIR": "/tmp"}
    running = subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("stacks/*.lock")) and time.monotonic() < end:
        time.sleep(0.1)
    assert list(tmp_path.glob("stacks/*.lock")), "it trains"
    children = _descendants(running.pid)
    os.killpg(running.pid, signal.SIGINT)  # as Ctrl-C does
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors.strip().endswith("unlearnlab: interrupted; run the same command again to go on")
    assert "Traceback" not in errors
    end = time.monotonic() + 20
    while any(map(jobs.alive, children)) and time.monotonic() < end:
        time.sleep(0.1)
    assert len(children) > 3
    assert not [child for child in children if jobs.alive(child)]
    assert not list(tmp_path.glob(".engine-*"))


def _descendants(parent: int) -> list[int]:
    found, fresh = list[int](), [parent]
    while fresh:
        fresh = [int(child) for one in fresh for children in Path(f"/proc/{one}/task").glob("*/children") for child in children.read_text().split()]
        found += fresh
    return found


# ---- wrong input


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "nothing answers at address '127.0.0.1:1'"),
        ("192.0.2.77:6379", "nothing answers at address"),  # an address that goes nowhere
        ("no.such.host.invalid:6379", "nothing answers at address"),
        ("localhost", "expected HOST:PORT"),
        ("ray://localhost:10001", "expected HOST:PORT"),
    ],
)
def test_an_address_where_nothing_answers_is_told_in_seconds(tmp_path: Path, address: str, words: str) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match=words):
        Ray(tmp_path, address)
    assert time.monotonic() - begun < 15
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_answers_may_be_no_cluster(tmp_path: Path, says: bytes) -> None:
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: (line := server.accept()[0]).sendall(says) or time.sleep(7) or line.close(), daemon=True)
        thread.start()
        with pytest.raises(InputError, match=r"is no Ray cluster; expected HOST:PORT|nothing answers at address .*timed out"):
            Ray(tmp_path, f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - begun < 15
        thread.join()


def test_no_cluster_on_this_machine(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"no Ray cluster at address 'auto'.*ray start --head"):
        Ray(tmp_path, "auto")
    assert time.monotonic() - begun < 15


def test_asking_for_what_the_cluster_has_not(cluster: Any, tmp_path: Path) -> None:
    asking: dict[str, dict[str, Any]] = {"0.25 GPU": {"gpus": 0.25}, "3 CPU": {"cpus": 3}, "bytes of memory": {"memory": 10**15}}
    for words, settings in asking.items():
        with pytest.raises(InputError, match=f"a job asks for .*{words}.*, and no machine of the Ray cluster has that"):
            Ray(tmp_path, cluster.address, **settings)
    with pytest.raises(InputError, match=r"gpus per job = 1.5"):
        Ray(tmp_path, cluster.address, gpus=1.5)


def test_what_a_job_asks_for_must_fit_on_one_machine(tmp_path: Path) -> None:
    held = started()
    try:
        held.add_node(num_cpus=1)
        with Ray(tmp_path, held.address) as engine:
            assert engine.workers == 2
        with pytest.raises(InputError, match=r"a job asks for 2 CPU, and no machine of the Ray cluster has that \(at most 1 CPU\)"):
            Ray(tmp_path, held.address, cpus=2)
    finally:
        held.shutdown()


def test_auto_of_an_address_where_nothing_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"nothing answers at address '127.0.0.1:1'"):
        Ray(tmp_path, "auto")
    assert time.monotonic() - begun < 15


def test_fractions_of_a_gpu_and_a_gpu_that_torch_cannot_use(tmp_path: Path) -> None:
    """Ray takes our word for the GPU of this node; the job looks for itself."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    held = started(num_cpus=8, num_gpus=1)
    try:
        with Ray(tmp_path, held.address, gpus=0.25) as engine:
            assert (engine.workers, engine.device) == (4, "cuda")
            with pytest.raises(InputError, match=r"a job was given a GPU, and torch .* can use none there"):
                list(engine.run([Job(math.factorial, (3,))]))
    finally:
        held.shutdown()


def test_a_store_that_workers_do_not_see_is_told_before_the_first_job(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Beacon, "path", property(lambda beacon: f"/only/here{beacon.root}/.engine"))
    with pytest.raises(InputError, match=rf"does not see the store /only/here{tmp_path}; choose a folder on a file system that all machines share"):
        Ray(tmp_path, cluster.address)
