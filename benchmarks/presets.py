"""Every preset in its small form, from an empty store: does it run, how long does it take, what does its report say?

    python benchmarks/presets.py                         # all of them; writes benchmarks/presets.json
    python benchmarks/presets.py trojan rum_mem          # these; writes nothing
    python benchmarks/presets.py trojan rum_mem --keep   # these; writes them beside the others' last results
    python benchmarks/presets.py --rotate 2              # two of them, chosen by the commit that is checked out

A preset may take 4 minutes on two cores: 480 s of processor time, which other work on the machine hardly stretches. Exit code 1 where one ends with
an error, or takes more (of two in rotation, only told). Rows that an integrity check disqualifies are named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unlearnlab.studyfiles import SMALL, presets, read_family

LIMIT = 480.0  # seconds of processor time: 240 on two cores
OURS = ("digits", "digits_all", "digits_all_class", "digits_audit", "digits_rum")  # small as they are, and measured elsewhere
COMMAND = [sys.executable, "-m", "unlearnlab"]


def published() -> list[str]:
    """The presets of other people's experiments."""
    return [name for name in presets() if name not in OURS]


def rotated(count: int, commit: str) -> list[str]:
    """So many presets, chosen by a commit's hash: the next ones are another commit's."""
    known = published()
    first = int(commit, 16) % len(known)
    return [known[(first + at) % len(known)] for at in range(count)]


def measure(name: str) -> dict[str, Any]:
    """Run one preset in its small form; what it took and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "UNLEARNLAB_STORE": folder, "OMP_NUM_THREADS": "1"}
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run([*COMMAND, "run", name, "--small"], env=environment, capture_output=True, text=True, check=False)
        seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        found: dict[str, Any] = {"seconds": round(seconds, 1), "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)}
        refused = re.findall(r"the audit failed for: (.*)", done.stderr)  # an integrity check disqualified a row: told, and no fault of the preset's
        if done.returncode and not refused:
            return {**found, "error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"}
        studies, rows, verdicts = 0, 0, Counter[str]()
        for member in read_family(name, small=True).studies:
            for audit in sorted((Path(folder) / "studies").glob(f"{member}*/audit.json")):
                if audit.parent.name not in (member,) and not audit.parent.name.startswith(f"{member}.request-"):
                    continue
                document = json.loads(audit.read_text(encoding="utf-8"))
                studies, rows = studies + 1, rows + len(document["rows"])
                verdicts.update(row["verdict"]["label"] for row in document["rows"])
        told = {"refused": refused} if refused else {}
        return {**found, "studies": studies, "rows": rows, "verdicts": dict(verdicts.most_common()), **told}


def _write(found: dict[str, dict[str, Any]], *, keep: bool) -> None:
    file, lines = Path(__file__).with_suffix(".json"), Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    held = {"date": datetime.now(UTC).date().isoformat(), "machine": f"{len(os.sched_getaffinity(0))} cores of {cpu}", "limit": LIMIT}
    others = json.loads(file.read_text())["presets"] if keep and file.exists() else {}
    file.write_text(json.dumps({**held, "presets": dict(sorted((others | found).items()))}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="presets (all of other people's experiments)")
    parser.add_argument("--keep", action="store_true", help="write the results of the presets named, and keep those of the others")
    parser.add_argument("--rotate", type=int, metavar="N", help="N presets, chosen by the commit")
    asked = parser.parse_args()
    names = asked.names or published()
    if asked.rotate:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        names = rotated(asked.rotate, commit)
    found = {}
    for name in names:
        found[name] = held = measure(name)
        print(f"{name}{SMALL}: {held}", flush=True)
    slow = [name for name, held in found.items() if held["cpu_seconds"] > LIMIT]
    failed = [name for name, held in found.items() if "error" in held or (name in slow and not asked.rotate)]
    if slow:
        print(f"more than {LIMIT:.0f} s of processor time: {', '.join(slow)}")
    if asked.keep or not (asked.names or asked.rotate):
        _write(found, keep=asked.keep)
    print(f"failed or too slow: {', '.join(failed)}" if failed else f"all {len(found)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
