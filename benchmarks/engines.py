"""What each engine costs beside the work: 200 tiny jobs, and one training study with one and with two workers.

    python benchmarks/engines.py                 # all engines that are installed; writes benchmarks/engines.json
    python benchmarks/engines.py local ray       # these; writes nothing

The overhead of a job is the time of 200 jobs that do nothing, on two workers that have done one before, over 200; a Slurm job does 25
of ours, or (``one_each``, 20 jobs) a single one, since each starts a process. Throughput is that of 24 chunks of 8 ``small_cnn``
trained for two epochs on digits, three chunks to a Slurm job, on an empty store.
Wall-clock time, the median of three turns; ``slurm`` is submitit's executor of local processes, without the time that a queue takes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unlearnlab import study
from unlearnlab.engine import Engine, Job, Local
from unlearnlab.store import Store
from unlearnlab.studyfiles import read

TINY, ALONE, TURNS = 200, 20, 3
CHUNKS = ("models=192", "recipe.epochs=2", "metrics=[]", "methods=[]")
Open = Callable[[Path, int, int], Any]  # a store's folder, workers, jobs for each Slurm job -> an engine


def engines() -> dict[str, Open]:
    """The engines that are installed here."""
    found: dict[str, Open] = {"local": lambda root, workers, _: Local(workers)}
    if find_spec("ray"):
        from unlearnlab.engine.on_ray import Ray

        found["ray"] = lambda root, workers, _: Ray(root, workers=workers)
    if find_spec("submitit"):
        from unlearnlab.engine.on_slurm import Slurm

        found["slurm"] = lambda root, workers, each: Slurm(root, cluster="local", workers=workers, per_job=each)
    return found


def overhead(engine: Engine, count: int = TINY) -> float:
    """Seconds for each of so many jobs that do nothing, once every worker has started."""
    list(engine.run([Job(time.sleep, (0.5,)) for _ in range(engine.workers)]))
    times = []
    for _ in range(TURNS):
        started = time.perf_counter()
        found = list(engine.run([Job(math.factorial, (3,)) for _ in range(count)]))
        times.append((time.perf_counter() - started) / count)
        assert len(found) == count
    return statistics.median(times)


def training(engine: Engine, root: Path) -> tuple[float, int]:
    """Seconds to train the originals of a study on an empty store, workers started before, and how many there are."""
    list(engine.run([Job(time.sleep, (0.5,)) for _ in range(engine.workers)]))
    name, what = read("digits", CHUNKS)
    times = []
    for turn in range(TURNS):
        store = Store(root / str(turn))
        study.run(what, name, store, until="data", engine=engine)
        started = time.perf_counter()
        study.run(what, name, store, until="original", engine=engine)
        times.append(time.perf_counter() - started)
    return statistics.median(times), what.models


def measure(name: str, opened: Open) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        started = time.perf_counter()
        with opened(root, 2, 25) as engine:
            found["start"] = round(time.perf_counter() - started, 2)
            found["overhead_ms"] = round(1000 * overhead(engine), 2)
        if name == "slurm":
            with opened(root, 2, 1) as engine:
                found["overhead_ms_one_each"] = round(1000 * overhead(engine, ALONE), 2)
        for workers in (1, 2):
            with opened(root, workers, 3) as engine:
                seconds, models = training(engine, root / f"with-{workers}")
                found[f"models_per_second_{workers}"] = round(models / seconds, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = engines()
    parser.add_argument("names", nargs="*", help=f"engines (all that are installed: {', '.join(known)})")
    asked = parser.parse_args()
    found = {}
    for name in asked.names or known:
        found[name] = measure(name, known[name])
        print(f"{name}: {found[name]}", flush=True)
    if not asked.names:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
        held = {"date": datetime.now(UTC).date().isoformat(), "machine": f"{len(os.sched_getaffinity(0))} cores of {cpu}", "engines": found}
        Path(__file__).with_suffix(".json").write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
