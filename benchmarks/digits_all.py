"""The science check: every method on digits from an empty store, timed, its verdicts written to ``digits_all.json``.

python benchmarks/digits_all.py              # both studies; exits 1 if digits_all takes more than 20 minutes (attributions apart) or a method is missing
python benchmarks/digits_all.py --store DIR  # with what is there already: for the verdicts only, the seconds then mean nothing and are left out

`python docs/make.py` puts the result into docs/methods.md.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from unlearnlab.engine import Local
from unlearnlab.spec import names
from unlearnlab.store import Store
from unlearnlab.study import Runner, run
from unlearnlab.studyfiles import read

RESULT = Path(__file__).with_suffix(".json")
STUDIES = ("digits_all", "digits_all_class")
LIMIT = 20 * 60.0  # seconds, on two cores
HOLD_OTHERS = {"localised", "sequence", "prune_first", "reset_finetune", "rum"}  # no methods of their own
SHOWN = ("trace", "acc.retain", "acc.forget", "acc.test", "avg_gap", "cost.fraction", "delta.changed")


def measured(name: str, store: Store, workers: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The rows of a finished study, and the seconds that its stages took."""
    _, study = read(name)
    seconds, last = dict[str, float](), time.perf_counter()

    def watch(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[stage] = seconds.get(stage, 0.0) + now - last
        last = now

    with Local(workers) as engine:
        runner: Runner = run(study, name, store, engine=engine, watch=watch)
    rows = {}
    for row in runner.document["rows"]:
        values = {key: row["results"][key]["value"] for key in SHOWN if key in row["results"]}
        rows[row["method"]] = {"verdict": row["verdict"]["text"], "rule": row["verdict"]["rule"], **values}
    return rows, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="go on with this store instead of an empty one")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        store = Store(asked.store or Path(empty))
        found = {name: measured(name, store, asked.workers) for name in STUDIES}
    rows = {name: held for name, (held, _) in found.items()}
    missing = sorted(set(names("method")) - HOLD_OTHERS - {method for held in rows.values() for method in held})
    result: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine(), "models": 32, "rows": rows}
    late = False
    if asked.store is None:
        seconds = found["digits_all"][1]
        attributions = seconds.get("score", 0.0) + seconds.get("attribution", 0.0)
        result["seconds"] = {"digits_all": round(sum(seconds.values()) - attributions), "attributions": round(attributions)}
        result["seconds"]["digits_all_class"] = round(sum(found["digits_all_class"][1].values()))
        late = result["seconds"]["digits_all"] > LIMIT
        print(json.dumps(result["seconds"]))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    for study, held in rows.items():
        print(f"\n{study}")
        for method, row in held.items():
            trace = row.get("trace")
            print(f"{method:28} trace {'  -  ' if trace is None or not math.isfinite(trace) else f'{trace:5.2f}'}  {row['verdict']}")
    if missing:
        sys.exit(f"not in any study: {', '.join(missing)}")
    sys.exit(f"digits_all took {result['seconds']['digits_all']} s, more than {LIMIT:.0f}" if late else 0)


def machine() -> str:
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{cpu or platform.processor()}, {torch.get_num_threads()} thread(s) per worker, torch {torch.__version__}"


if __name__ == "__main__":
    main()
