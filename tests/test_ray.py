"""The engine ``ray`` on a real cluster of two nodes with one worker each: jobs, and studies that come out the same bit for bit."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import engine_jobs as jobs
from engine_studies import FRAGILE, made, ran
from unlearnlab.engine import Job, Local, WorkerError
from unlearnlab.engine.on_ray import Ray
from unlearnlab.spec import InputError

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one worker each, which find the jobs of the tests as those of a cluster find this package: it is installed there."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        held = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        held.add_node(num_cpus=1)
        yield held
        held.shutdown()


@pytest.fixture(scope="module")
def two(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    with Ray(tmp_path_factory.mktemp("shared"), cluster.address) as engine:
        yield engine


# ---- jobs


def test_jobs_run_on_both_nodes_in_workers_that_stay_alive(two: Ray) -> None:
    assert (two.workers, two.device) == (2, "cpu")
    assert sorted(two.run([Job(math.factorial, (n,)) for n in range(8)])) == [(n, math.factorial(n)) for n in range(8)]
    assert len({node for _, node in two.run([Job(jobs.where, (n,)) for n in range(6)])}) == 2
    first, second = ({seen for _, seen in two.run([Job(jobs.pid, (n,)) for n in range(6)])} for _ in range(2))
    assert first & second
    assert os.getpid() not in first
    assert list(two.run([])) == []


def test_jobs_use_one_thread(two: Ray) -> None:
    assert [*two.run([Job(jobs.threads)])] == [(0, (1, "1"))]


def test_a_worker_killed_in_the_middle_of_a_job_costs_one_retry(two: Ray, tmp_path: Path) -> None:
    found = dict(two.run([Job(jobs.die, (str(tmp_path), 1), "fragile"), *(Job(math.factorial, (n,)) for n in range(5))]))
    assert found == {0: 2, 1: 1, 2: 1, 3: 2, 4: 6, 5: 24}
    assert len(os.listdir(tmp_path)) == 2


def test_a_job_that_always_kills_its_worker_is_named(two: Ray, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"^job 'fragile': its worker went away and so did those that tried again"):
        list(two.run([Job(jobs.die, (str(tmp_path), 99), "fragile")]))
    assert dict(two.run([Job(math.factorial, (3,))])) == {0: 6}


def test_wrong_input_in_a_job_is_raised_here_and_cancels_the_rest(two: Ray, tmp_path: Path) -> None:
    naps = [Job(jobs.nap, (str(tmp_path), str(n), 30.0)) for n in range(8)]
    with pytest.raises(InputError, match=r"^wrong: want right\n"):
        list(two.run([Job(jobs.fail, ("wrong: want right",)), *naps]))
    begun = time.monotonic()
    assert dict(two.run([Job(math.factorial, (3,))])) == {0: 6}, "workers are free again"
    assert time.monotonic() - begun < 20
    assert not list(tmp_path.glob("*.done"))


def test_who_stops_listening_stops_the_jobs(two: Ray, tmp_path: Path) -> None:
    naps = [Job(jobs.nap, (str(tmp_path), str(n), 30.0)) for n in range(2)]
    for _ in two.run([Job(math.factorial, (3,)), *naps]):
        break
    begun = time.monotonic()
    assert dict(two.run([Job(math.factorial, (3,))])) == {0: 6}, "workers are free again"
    assert time.monotonic() - begun < 20
    assert not list(tmp_path.glob("*.done"))


# ---- studies


def test_a_study_is_the_same_bit_for_bit_as_on_this_machine(two: Ray, tmp_path: Path) -> None:
    with Local(1) as here:
        ran(tmp_path / "local", here)
    ran(tmp_path / "ray", two)
    assert made(tmp_path / "ray") == made(tmp_path / "local")


def test_a_study_whose_worker_is_killed_loses_nothing(two: Ray, tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    found = dict[str, Any]()
    for name, engine in (("local", Local(2)), ("ray", two)):
        marks = tmp_path / name / "marks"
        marks.mkdir(parents=True)
        if name == "local":
            (marks / "0").touch()  # as if it had been killed before
        # the folder's name is part of the method, and so of the key: one name for both
        link = tmp_path / "marks"
        link.unlink(missing_ok=True)
        link.symlink_to(marks)
        done = ran(tmp_path / name / "store", engine, f'methods=[{{name="fragile", marks="{link}"}}]', plugins=(str(tmp_path / "fragile.py"),))
        found[name] = made(tmp_path / name / "store"), len(os.listdir(marks)), len(done.unlearned["fragile"])
    assert found["ray"][0] == found["local"][0]
    assert found["ray"][1] == found["ray"][2] + 1, "one call more than there are chunks"
