"""A small study on real digits for the tests of engines, and what must be the same wherever it ran."""

import json
from pathlib import Path
from typing import Any

from unlearnlab import study
from unlearnlab.engine import Engine
from unlearnlab.spec import load_plugin
from unlearnlab.store import Store
from unlearnlab.studyfiles import read

CHANGES = (
    "models=24",  # two chunks
    "partition.train=200",
    "recipe.epochs=4",
    "net=mlp",
    'methods=[{name="finetune", epochs=2}, {name="salun", epochs=1}]',
    'metrics=["trace", "perm.omnibus", "energy", {name="acc", part="test"}]',
)
FRAGILE = """
import os, signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from unlearnlab.spec import Setting, spec
@spec("method", "fragile")
class Fragile:
    reads = frozenset()
    cost = "0"
    null = None
    marks: Annotated[str, Setting("folder that counts the calls")] = ""
    def __call__(self, stack, split, ctx):
        called = len(os.listdir(self.marks)) + 1
        Path(self.marks, str(called)).touch()
        if called == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(stack, params={name: value * 0.9 for name, value in stack.params.items()})
"""


def ran(root: Path, engine: Engine, *changes: str, plugins: tuple[str, ...] = ()) -> study.Runner:
    for path in plugins:
        load_plugin(path)
    name, what = read("digits", (*CHANGES, *changes))
    return study.run(what, name, Store(root), engine=engine, plugins=plugins)


def made(root: Path) -> dict[str, Any]:
    """Checksums of every payload in a store, and the audit's numbers; without what was measured of the machine."""
    store, found = Store(root), dict[str, Any]()
    for row in store.list():
        for name, fact in store.manifest(row.kind, row.key)["files"].items():
            if not name.endswith(("log.jsonl", "facts.json")):
                found[f"{row.kind}/{row.key}/{name}"] = fact["sha256"]
    document = json.loads((root / "studies" / "digits" / "audit.json").read_text())
    return found | {row["method"]: row["results"] for row in document["rows"]}
