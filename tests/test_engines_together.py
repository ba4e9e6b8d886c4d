"""Two runs of one study on one store, as of two machines: they share the work, and the store is as one run leaves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine_studies import made, ran
from unlearnlab.engine import Local

COUNTING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine_studies import ran
from unlearnlab.engine import Local
from unlearnlab.store import Store
create, made = Store._create, []
def counted(self, kind, key, *more):
    made.append(f"{kind}/{key}")
    return create(self, kind, key, *more)
Store._create = counted
ran(Path(sys.argv[2]), Local(1))
print("\\n".join(made))
"""


@pytest.mark.slow
def test_two_runs_share_the_work_and_make_nothing_twice(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNTING, str(Path(__file__).parent), str(tmp_path / "shared")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate(timeout=300)[0].split() for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert len(first) > 5
    assert len(second) > 5
    assert not set(first) & set(second)
    ran(tmp_path / "alone", Local(1))
    assert made(tmp_path / "shared") == made(tmp_path / "alone")
