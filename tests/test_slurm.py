"""The engine ``slurm`` through submitit's executor of local processes: the same path, all but the scheduler itself."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import engine_jobs as jobs
import slurm_stub
from engine_studies import FRAGILE, made, ran
from test_engine import artefact
from unlearnlab.engine import Job, Local, WorkerError
from unlearnlab.engine.beacon import Beacon
from unlearnlab.engine.on_slurm import Slurm
from unlearnlab.spec import InputError

pytestmark = [pytest.mark.slurm, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of the tests are found as those of this package are on a cluster: it is installed there."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Slurm]:
    (tmp_path / "store").mkdir()
    with Slurm(tmp_path / "store", cluster="local", workers=2, per_job=3) as engine:
        yield engine


# ---- jobs


def test_several_jobs_share_a_slurm_job(two: Slurm) -> None:
    assert sorted(two.run([Job(math.factorial, (n,)) for n in range(8)])) == [(n, math.factorial(n)) for n in range(8)]
    found = dict(two.run([Job(jobs.pid, (n,)) for n in range(6)]))
    assert found[0] == found[1] == found[2] != found[3] == found[4] == found[5]
    assert list(two.run([])) == []
    assert (two.workers, two.device) == (2, "cpu")


def test_jobs_use_one_thread(two: Slurm) -> None:
    assert [*two.run([Job(jobs.threads)])] == [(0, (1, "1"))]


def test_a_slurm_job_that_is_killed_is_sent_again_and_then_named(two: Slurm, tmp_path: Path) -> None:
    once, always = tmp_path / "once", tmp_path / "always"
    for folder in (once, always):
        folder.mkdir()
    assert dict(two.run([Job(jobs.die, (str(once), 1), "fragile"), Job(math.factorial, (3,))])) == {0: 2, 1: 6}
    with pytest.raises(WorkerError, match=r"^job 'fragile': its Slurm job went away twice; its logs: .*\.err$") as caught:
        list(two.run([Job(jobs.die, (str(always), 9), "fragile")]))
    two.close()
    assert Path(str(caught.value).partition("logs: ")[2]).exists(), "where a job failed its logs stay"


def test_one_that_is_told_that_its_time_is_up_is_queued_again(two: Slurm, tmp_path: Path) -> None:
    """As Slurm does before a time limit, or when it needs the node: SIGUSR2, and the same job starts anew."""
    running = two.run([Job(jobs.nap, (str(tmp_path), "long", 3.0))])
    first: list[str] = []

    def interrupt() -> bool:
        file = tmp_path / "long"
        if not first and file.exists() and file.read_text():
            first.append(file.read_text())
            os.kill(int(first[0]), signal.SIGUSR2)
        return bool(first)

    thread = threading.Thread(target=lambda: jobs.wait_until(interrupt, 60))
    thread.start()
    assert list(running) == [(0, "long")]
    thread.join()
    assert first, "it was interrupted"
    assert (tmp_path / "long").read_text() != first[0], "another process did it"


def test_wrong_input_is_raised_here_and_cancels_the_rest(two: Slurm, tmp_path: Path) -> None:
    naps = [Job(jobs.nap, (str(tmp_path), str(n), 30.0)) for n in range(3)]
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"^wrong: want right\n"):
        list(two.run([*[Job(jobs.fail, ("wrong: want right",))] * 3, *naps]))
    assert time.monotonic() - begun < 20
    assert jobs.wait_until(lambda: not _running(two), 60)
    assert not list(tmp_path.glob("*.done"))


def _running(engine: Slurm) -> list[str]:
    """The processes that work for an engine."""
    folder = str(engine._folder)
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if folder in _text(path)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_what_another_run_is_at_comes_last(tmp_path: Path) -> None:
    """It must not hold a node meanwhile that other jobs could have."""
    script = f"import test_engine; test_engine.artefact({str(tmp_path)!r}, 'a', 6)"
    other = subprocess.Popen([sys.executable, "-c", script])
    assert jobs.wait_until(lambda: list(tmp_path.glob("things/a.lock")), 60)
    with Slurm(tmp_path, cluster="local", workers=1) as engine:
        found = list(engine.run([Job(artefact, (str(tmp_path), key, 0.1)) for key in "ab"]))
    assert [index for index, _ in found] == [1, 0]
    assert found[1][1] == str(other.pid)
    assert other.wait() == 0


# ---- studies


def test_a_study_is_the_same_bit_for_bit_as_on_this_machine_also_where_a_worker_is_killed(two: Slurm, tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    link, found = tmp_path / "marks", list[Any]()  # the folder's name is part of the method, and so of the key: one name for both
    with Local(2) as here:
        for name, engine in (("local", here), ("store", two)):
            marks = tmp_path / f"marks-{name}"
            marks.mkdir()
            if name == "local":
                (marks / "0").touch()  # as if it had been killed before
            link.unlink(missing_ok=True)
            link.symlink_to(marks)
            methods = f'methods=[{{name="finetune", epochs=2}}, {{name="salun", epochs=1}}, {{name="fragile", marks="{link}"}}]'
            done = ran(tmp_path / name, engine, methods, plugins=(str(tmp_path / "fragile.py"),))
            found.append((made(tmp_path / name), len(os.listdir(marks)), len(done.unlearned["fragile"])))
    (local, *_), (slurm, calls, chunks) = found
    assert slurm == local
    assert calls == chunks + 1, "one call more than there are chunks"
    two.close()
    assert not list((tmp_path / "store").glob(".engine-*"))


# ---- the path to a scheduler, over a stand-in for its commands


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    slurm_stub.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "store").mkdir()
    return tmp_path / "bin"


def test_job_arrays_ask_for_what_was_given(commands: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"partition": "gpu", "minutes": 240, "cpus": 2, "memory": 7.5, "per_job": 2, "workers": 3}
    with Slurm(tmp_path / "store", **settings) as engine:
        assert sorted(engine.run([Job(jobs.threads) for _ in range(8)])) == [(n, (1, "1")) for n in range(8)]
    script = (commands / "last.sbatch").read_text()
    for line in ("array=0-3%3", "partition=gpu", "time=240", "cpus-per-task=2", "mem=7680MB", "signal=USR2@90", "job-name=unlearnlab"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --requeue\n" in script
    assert "gpus" not in script
    assert "export OMP_NUM_THREADS=1\n" in script
    assert not list((tmp_path / "store" / ".slurm").iterdir())


def test_a_gpu_is_asked_for(commands: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    with Slurm(tmp_path / "store", gpus=2) as engine:
        assert engine.device == "cuda"
        with pytest.raises(InputError, match=r"was given a GPU, and torch .* can use none there"):
            list(engine.run([Job(math.factorial, (3,))]))
    assert "#SBATCH --gpus-per-node=2\n" in (commands / "last.sbatch").read_text()


def test_a_preempted_job_of_an_array_is_requeued_and_goes_on(commands: Path, tmp_path: Path) -> None:
    with Slurm(tmp_path / "store") as engine:
        thread = threading.Thread(target=lambda: jobs.wait_until(lambda: _interrupted(tmp_path / "long", commands), 60))
        thread.start()
        assert sorted(engine.run([Job(jobs.nap, (str(tmp_path), "long", 3.0)), Job(math.factorial, (3,))])) == [(0, "long"), (1, 6)]
        thread.join()
    assert len((tmp_path / "long.pids").read_text().split()) == 2, "two processes were at it, one after the other"


def _interrupted(file: Path, commands: Path) -> bool:
    """Does what Slurm does before it takes a node away, once the job is under way."""
    if not file.exists() or not file.read_text():
        return False
    subprocess.run([commands / "scancel", "100_0", "--signal", "USR2"], check=True)
    return True


def test_what_slurm_refuses_is_told(commands: Path, tmp_path: Path) -> None:
    with (
        Slurm(tmp_path / "store", partition="none") as engine,
        pytest.raises(InputError, match=r"Slurm did not take .*invalid partition specified: none"),
    ):
        list(engine.run([Job(math.factorial, (3,))]))


def test_no_array_is_longer_than_slurm_takes(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearnlab.engine.on_slurm.ARRAY", 3)
    with Slurm(tmp_path / "store", workers=2) as engine:
        assert sorted(engine.run([Job(math.factorial, (n,)) for n in range(7)])) == [(n, math.factorial(n)) for n in range(7)]
    arrays = [re.search(r"--array=0-(\d+)%", path.read_text()) for path in commands.glob("job-*")]
    assert max(int(found[1]) for found in arrays if found) == 2
    assert len(arrays) >= 3


def test_a_job_that_was_killed_is_sent_again_while_others_go_on(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearnlab.engine.on_slurm.SEEN", 1.0)
    monkeypatch.setattr("submitit.slurm.slurm.SlurmJob.watcher._delay_s", 1)
    (tmp_path / "marks").mkdir()
    with Slurm(tmp_path / "store", workers=2) as engine:
        found = dict(engine.run([Job(jobs.die, (str(tmp_path / "marks"), 1), "fragile"), Job(math.factorial, (3,))]))
    assert found == {0: 2, 1: 6}


def test_who_stops_listening_cancels_the_array(commands: Path, tmp_path: Path) -> None:
    with Slurm(tmp_path / "store") as engine:
        for _ in engine.run([Job(math.factorial, (3,)), Job(jobs.nap, (str(tmp_path), "long", 60.0))]):
            assert jobs.wait_until(lambda: (tmp_path / "long").exists(), 60)
            break
        assert jobs.wait_until(lambda: not _running(engine), 20)
    assert not (tmp_path / "long.done").exists()


# ---- wrong input


def test_no_slurm_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=r"finds no command sbatch.*--slurm\.cluster local"):
        Slurm(tmp_path)


def test_a_store_that_nodes_do_not_see_is_told_before_the_first_job(two: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Beacon, "path", property(lambda beacon: f"/only/here{beacon.root}/.engine"))
    with pytest.raises(InputError, match=r"does not see the store .*; choose a folder on a file system that all machines share"):
        list(two.run([Job(jobs.nap, (str(tmp_path), "never", 0.0))]))
    assert not (tmp_path / "never").exists()


def test_a_gpu_that_torch_cannot_use(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    with Slurm(tmp_path, cluster="local", gpus=1, workers=1) as engine:
        assert engine.device == "cuda"
        with pytest.raises(InputError, match=r"was given a GPU, and torch .* can use none there"):
            list(engine.run([Job(math.factorial, (3,))]))


@pytest.mark.parametrize("settings", [{"workers": 0}, {"per_job": 0}, {"cpus": 0}, {"minutes": 0}])
def test_numbers_out_of_range(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="= 0 is out of range: expected at least 1"):
        Slurm(tmp_path, cluster="local", **settings)
