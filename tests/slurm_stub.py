"""A stand-in for Slurm's commands, enough for submitit to run job arrays in processes of this machine: no queue, no nodes.

``install(folder)`` puts sbatch, srun, sacct, scancel and scontrol into a folder for $PATH. What they know lies beside them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")


def install(folder: Path) -> None:
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} {folder} "$@"\n')
        (folder / name).chmod(0o755)


def sbatch(here: Path, script: str) -> None:
    text = Path(script).read_text()
    (here / "last.sbatch").write_text(text)
    if "--partition=none" in text:
        sys.exit("sbatch: error: invalid partition specified: none")
    job = 100 + len(list(here.glob("job-*")))
    (here / f"job-{job}").write_text(text)
    array = re.search(r"--array=0-(\d+)%(\d+)", text)
    last, at_once = (int(array[1]), int(array[2])) if array else (0, 1)

    def called(index: int) -> str:
        return f"{job}_{index}" if array else str(job)

    if os.fork() == 0:  # the queue
        os.setsid()
        for stream in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        running: dict[int, subprocess.Popen[bytes]] = {}
        waiting = list(range(last + 1))
        while waiting or running:
            while waiting and len(running) < at_once:
                index = waiting.pop(0)
                known = {"JOB_ID": job, "PROCID": 0, "NTASKS": 1, "LOCALID": 0, "NODEID": 0, "JOB_NUM_NODES": 1}
                known |= {"ARRAY_JOB_ID": job, "ARRAY_TASK_ID": index} if array else {}
                named = {f"SLURM_{name}": str(value) for name, value in known.items()} | {"SLURM_JOB_NODELIST": "here"}
                running[index] = subprocess.Popen(["bash", here / f"job-{job}"], env={**os.environ, **named}, start_new_session=True)
                (here / f"pid-{called(index)}").write_text(str(running[index].pid))
            for index in [index for index, process in running.items() if process.poll() is not None]:
                code, again = running.pop(index).returncode, here / f"requeue-{called(index)}"
                if again.exists():
                    again.unlink()
                    waiting.append(index)
                else:
                    (here / f"state-{called(index)}").write_text("COMPLETED" if code == 0 else "FAILED")
            time.sleep(0.02)
        os._exit(0)
    sys.stdout.write(f"Submitted batch job {job}\n")


def srun(here: Path, *words: str) -> None:
    names, rest = {"%j": "SLURM_JOB_ID", "%A": "SLURM_ARRAY_JOB_ID", "%a": "SLURM_ARRAY_TASK_ID", "%t": "SLURM_PROCID"}, list(words)
    while rest and rest[0].startswith("--"):
        word = rest.pop(0)
        if word in ("--output", "--error"):
            path = rest.pop(0)
            for sign, name in names.items():
                path = path.replace(sign, os.environ.get(name, ""))
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1 if word == "--output" else 2)
    os.execvp(rest[0], rest)


def sacct(here: Path, *words: str) -> None:
    sys.stdout.write("JobID|State|NodeList\n")
    for path in sorted(here.glob("pid-*")):
        job = path.name.partition("-")[2]
        state = here / f"state-{job}"
        sys.stdout.write(f"{job}|{state.read_text() if state.exists() else 'RUNNING'}|here\n")


def scancel(here: Path, job: str, *words: str) -> None:
    number = getattr(signal, {"USR2": "SIGUSR2"}.get(words[1], words[1])) if words else signal.SIGKILL
    for path in here.glob(f"pid-{job}*"):
        try:
            os.killpg(int(path.read_text()), number)
        except ProcessLookupError:
            continue


def scontrol(here: Path, word: str, job: str) -> None:
    assert word == "requeue"
    (here / f"requeue-{job}").touch()


if __name__ == "__main__":
    {one.__name__: one for one in (sbatch, srun, sacct, scancel, scontrol)}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
