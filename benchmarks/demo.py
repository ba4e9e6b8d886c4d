"""The whole demo as a user runs it: seconds and peak memory of all its processes, the second run, and `--help`.

python benchmarks/demo.py        # exits 1 if a limit is missed: 150 s and 2.5 GB on two cores, help in 0.5 s
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

COMMAND = str(Path(sys.executable).parent / "unlearnlab")
LIMITS = {"demo, seconds": 150.0, "peak memory of all processes, GB": 2.5, "--help, seconds (best of five)": 0.5}


def resident(root: int) -> int:
    """Bytes that a process and all its descendants do not share with others (proportional share of what they do)."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        try:
            waiting += [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue  # ended meanwhile
    return total


def timed(store: str, *words: str) -> tuple[float, float]:
    """Wall seconds and peak bytes of one command."""
    environment = {**os.environ, "UNLEARNLAB_STORE": store}
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen([COMMAND, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if process.wait() != 0:
        sys.exit(f"unlearnlab {' '.join(words)} failed with {process.returncode}")
    seconds = time.perf_counter() - started
    watcher.join()
    return seconds, peak / 2**30


def main() -> None:
    with tempfile.TemporaryDirectory() as store:
        first, memory = timed(store, "demo")
        again, _ = timed(store, "demo")
        helps = [timed(store, "--help")[0] for _ in range(5)]
    measured = dict(zip(LIMITS, (first, memory, min(helps)), strict=True))
    missed = [name for name, value in measured.items() if value > LIMITS[name]]
    for name, value in measured.items():
        print(f"{name}: {value:.2f} (limit {LIMITS[name]:g})")
    print(f"the same demo again, seconds: {again:.2f}")
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
