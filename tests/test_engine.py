import importlib
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine_jobs import alive, pid, threads, wait_until
from unlearnlab.engine import Job, Local, WorkerError, usable_cores
from unlearnlab.spec import InputError
from unlearnlab.store import Store

# -- jobs: found by name in the worker processes ---------------------------------------------------


def die(marks: str, times: int) -> str:
    marks_left = len(os.listdir(marks))
    if marks_left < times:
        Path(marks, str(marks_left)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def fail(kind: str) -> None:
    raise {"input": InputError("wrong: want right"), "odd": OddError(1, 2), "lookup": KeyError("x")}[kind]


def mark(folder: str, name: str) -> str:
    time.sleep(0.1)
    Path(folder, name).touch()
    return name


class OddError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


@pytest.fixture(scope="module")
def two():
    with Local(2) as engine:
        yield engine


# -- tests -----------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_workers(two):
    jobs = [Job(math.factorial, (n,), f"{n}!") for n in range(12)]
    with Local(1) as one:
        assert list(one.run(jobs)) == sorted(two.run(jobs)) == [(n, math.factorial(n)) for n in range(12)]
    assert list(two.run([])) == []


def test_one_worker_is_this_process():
    assert [*Local(1).run([Job(pid, (0,))])] == [(0, os.getpid())]


def test_workers_stay_alive_across_runs(two):
    first, second = ({seen for _, seen in two.run([Job(pid, (n,)) for n in range(6)])} for _ in range(2))
    assert first == second
    assert len(first) == 2
    assert os.getpid() not in first


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_use_one_thread(two, workers):
    import torch

    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    try:
        engine = two if workers == 2 else Local(1)
        assert [*engine.run([Job(threads)])] == [(0, (1, "1"))]
        assert torch.get_num_threads() == 2, "the caller's own setting comes back"
        assert os.environ.get("OMP_NUM_THREADS") == before[1]
    finally:
        torch.set_num_threads(before[0])


def test_a_job_whose_worker_is_killed_is_tried_again(two, tmp_path):
    jobs = [Job(die, (str(tmp_path), 1), "fragile"), *(Job(math.factorial, (n,)) for n in range(5))]
    assert dict(two.run(jobs)) == {0: "alive", 1: 1, 2: 1, 3: 2, 4: 6, 5: 24}


def test_a_job_that_kills_twice_is_named_in_one_line(two, tmp_path):
    with pytest.raises(WorkerError, match=r"^job 'fragile': its worker process died twice \(SIGKILL; .*\)$"):
        list(two.run([Job(die, (str(tmp_path), 9), "fragile")]))
    assert len(os.listdir(tmp_path)) == 2
    assert dict(two.run([Job(math.factorial, (3,))])) == {0: 6}


def test_an_idle_worker_that_was_killed_is_replaced(two):
    for process in {seen for _, seen in two.run([Job(pid, (n,)) for n in range(6)])}:
        os.kill(process, signal.SIGKILL)
    time.sleep(0.1)
    assert dict(two.run([Job(math.factorial, (3,))])) == {0: 6}


@pytest.mark.parametrize("workers", [1, 2])
def test_exceptions_keep_their_type(two, workers):
    engine = two if workers == 2 else Local(1)
    with pytest.raises(InputError) as caught:
        list(engine.run([Job(fail, ("input",))]))
    assert str(caught.value) == "wrong: want right"
    if workers == 2:
        assert "in fail" in caught.value.__notes__[0], "where it happened is told too"
    with pytest.raises(KeyError, match="x"):
        list(engine.run([Job(fail, ("lookup",))]))


def test_what_cannot_travel_is_an_error_and_no_hang(two):
    with pytest.raises(RuntimeError, match="OddError: 1 and 2"):
        list(two.run([Job(fail, ("odd",))]))
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        list(two.run([Job(lambda: 1)]))
    with pytest.raises(TypeError, match="pickle"):
        list(two.run([Job(memoryview, (b"",))]))


def test_a_failure_cancels_the_jobs_not_started(two, tmp_path):
    jobs = [Job(fail, ("input",)), *(Job(mark, (str(tmp_path), str(n))) for n in range(20))]
    with pytest.raises(InputError):
        list(two.run(jobs))
    time.sleep(0.3)
    assert len(os.listdir(tmp_path)) <= 8


def test_who_stops_listening_stops_the_run(two, tmp_path):
    for _ in two.run([Job(mark, (str(tmp_path), str(n))) for n in range(20)]):
        break
    time.sleep(0.3)
    assert len(os.listdir(tmp_path)) <= 8
    assert dict(two.run([Job(math.factorial, (3,))])) == {0: 6}


def test_two_runs_at_once_are_refused(two):
    running = two.run([Job(pid, (n,)) for n in range(6)])
    next(running)
    with pytest.raises(RuntimeError, match="still running"):
        next(two.run([Job(pid, (0,))]))
    running.close()


def test_bad_worker_count():
    with pytest.raises(InputError, match="workers = 0"):
        Local(0)
    assert Local().workers == usable_cores() >= 1


PARENT = """
import sys, time
from unlearnlab.engine import Local, Job
import os
def nap(seconds):
    os.write(1, f"{os.getpid()}\\n".encode())  # at once: two workers' prints may fall between one another's lines
    time.sleep(seconds)
if __name__ == "__main__":
    with Local(2) as engine:
        list(engine.run([Job(nap, (60,)) for _ in range(4)]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, -2)])
def test_no_worker_outlives_its_parent(tmp_path, number, code):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(alive, workers))
    started = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as Ctrl-C does: to the workers too
    else:
        parent.kill()
    _, errors = parent.communicate(timeout=60)
    assert wait_until(lambda: not any(map(alive, workers)))
    assert time.monotonic() - started < 10
    assert parent.returncode == code
    assert errors.count("Traceback") == (number == signal.SIGINT), "the workers have nothing to say to a Ctrl-C"


def test_ctrl_c_while_workers_start_up(tmp_path):
    (tmp_path / "parent.py").write_text("import time\n__name__ == '__main__' or time.sleep(1)\n" + PARENT)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    assert wait_until(lambda: len(children.read_text().split()) == 3)  # two workers and multiprocessing's tracker
    time.sleep(0.3)
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGINT)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(alive, workers)), "they started up all the same"
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=60)
    assert errors.count("Traceback") == 1


@pytest.mark.parametrize("how", ["-c", "stdin", "script"])
def test_any_main_will_do(tmp_path, how):
    program = "import math\nfrom unlearnlab.engine import Job, Local\nif __name__ == '__main__': print(list(Local(2).run([Job(math.factorial, (4,))])))\n"
    (tmp_path / "unlearnlab").write_text(program)  # console scripts have no .py
    arguments = {"-c": ["-c", program], "stdin": ["-"], "script": [str(tmp_path / "unlearnlab")]}[how]
    done = subprocess.run([sys.executable, *arguments], input=program, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[(0, 24)]", "")


def test_floor_zero():
    for module in ("engine", "store"):
        subprocess.run([sys.executable, "-c", f"import sys, unlearnlab.{module}; assert not {{'torch', 'numpy'}} & set(sys.modules)"], check=True)


# -- several engines at one store ------------------------------------------------------------------


def artefact(root: str, key: str, seconds: float) -> str:
    """Make an artefact and say in it which process did."""

    def write(folder: Path) -> None:
        time.sleep(seconds)
        (folder / "by").write_text(str(os.getpid()))

    return (Store(root).make("things", key, write, manifest={}) / "by").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_another_run_is_at_comes_last_and_is_then_waited_for(two, tmp_path, workers):
    """A second machine that joins a run takes other work than the first is doing."""
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_engine; print(test_engine.artefact({str(tmp_path)!r}, 'a', 4))"
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert wait_until(lambda: list(tmp_path.glob("things/a.lock")), 30)
    engine, order = two if workers == 2 else Local(1), []
    for index, by in engine.run([Job(artefact, (str(tmp_path), key, 0.1)) for key in "abcd"]):
        order.append(index)
        assert (by == str(other.pid)) == (index == 0)
        assert other.poll() is None or index == 0, "the others did not wait for it"
    assert order[-1] == 0
    assert sorted(order) == [0, 1, 2, 3]
    assert int(other.communicate()[0]) == other.pid


def test_a_lock_of_a_dead_process_is_taken_over_at_once(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_engine; test_engine.artefact({str(tmp_path)!r}, 'a', 60)"
    other = subprocess.Popen([sys.executable, "-c", script])
    assert wait_until(lambda: list(tmp_path.glob("things/a.lock")), 30)
    other.kill()
    other.wait()
    assert dict(Local(1).run([Job(artefact, (str(tmp_path), "a", 0.0))])) == {0: str(os.getpid())}


# -- GPUs ------------------------------------------------------------------------------------------


def place(_: int) -> tuple[int, str | None]:
    time.sleep(0.2)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("workers", "each"), [(None, 1), (4, 2)])
def test_one_process_for_each_gpu_or_several_that_share_them_evenly(monkeypatch, workers, each):
    """Two GPUs are pretended: what is looked at is which one a worker is given."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    with Local(workers) as engine:
        assert (engine.workers, engine.device) == (2 * each, "cuda")
        found = dict({seen for _, seen in engine.run([Job(place, (n,)) for n in range(8)])})
        assert sorted(found.values()) == ["5"] * each + ["7"] * each
        lost = next(process for process, gpu in found.items() if gpu == "7")
        os.kill(lost, signal.SIGKILL)
        assert wait_until(lambda: not alive(lost))
        list(engine.run([Job(place, (n,)) for n in range(8)]))
        assert sorted(worker.gpu for worker in engine._idle if worker.process.is_alive()) == ["5"] * each + ["7"] * each, "in the place of the dead one"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7,9"


# -- engines that are not installed ----------------------------------------------------------------


@pytest.mark.parametrize(("module", "engine", "extra"), [("ray", "on_ray.Ray", "ray"), ("submitit", "on_slurm.Slurm", "slurm")])
def test_an_engine_that_is_not_installed_names_the_extra(monkeypatch, tmp_path, module, engine, extra):
    monkeypatch.setitem(sys.modules, module, None)
    file, name = engine.split(".")
    with pytest.raises(InputError, match=rf"pip install 'unlearnlab\[{extra}\]'"):
        getattr(importlib.import_module(f"unlearnlab.engine.{file}"), name)(tmp_path)
    assert not os.listdir(tmp_path)
