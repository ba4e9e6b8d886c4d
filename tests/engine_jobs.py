"""Jobs for the tests of engines, which worker processes find by name; and how to look at processes."""

import os
import signal
import time
from pathlib import Path

from unlearnlab.spec import InputError


def pid(_: int) -> int:
    time.sleep(0.05)  # so that all workers get some
    return os.getpid()


def threads() -> tuple[int, str | None]:
    import torch

    return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


def die(marks: str, times: int) -> int:
    """Kill the own process the first so many times; then tell how often this was called."""
    called = len(os.listdir(marks)) + 1
    Path(marks, str(called)).touch()
    if called <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return called


def fail(text: str) -> None:
    raise InputError(text)


def nap(folder: str, name: str, seconds: float) -> str:
    Path(folder, name).write_text(str(os.getpid()))
    with Path(folder, f"{name}.pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    Path(folder, f"{name}.done").touch()
    return name


def where(_: int) -> str:
    """The node of a Ray cluster that this runs on."""
    import ray

    time.sleep(0.3)
    return str(ray.get_runtime_context().get_node_id())


# ---- for the tests themselves


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not (now := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return now
