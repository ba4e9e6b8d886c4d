"""The examples run as they stand and print what the README says they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from unlearnlab.spec import _registry, load_plugin, names

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARE = re.compile(r"(\d+)%")


def printed(name: str) -> list[str]:
    """The lines an example prints, with every warning an error."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "error", EXAMPLES / name], capture_output=True, text=True, env=alone, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def forgot(name: str) -> None:
    """Most of the wrong labels are forgotten or fewer known, and what is to be kept is kept."""
    before, after = ([int(share) for share in SHARE.findall(line)] for line in printed(name))
    assert before[0] >= 90
    assert after[0] < before[0] - 20
    assert after[1] >= before[1] - 5


def test_quickstart() -> None:
    header, original, *rows, power = printed("quickstart.py")
    assert header.split()[:2] == ["method", "trace"]
    assert original.split()[:2] == ["original", "1.000"]
    assert [row.split()[0] for row in rows] == ["finetune", "salun"]
    assert all(0.5 < float(row.split()[1]) < 0.95 and "not forgotten" in row for row in rows)
    assert power.startswith("Power: ")


def test_own_model() -> None:
    forgot("own_model.py")


def test_my_method() -> None:
    forgot("my_method.py")


def test_my_method_is_a_plugin() -> None:
    try:
        load_plugin(EXAMPLES / "my_method.py")
        assert "leash" in names("method")
    finally:
        _registry["method"].pop("leash", None)
