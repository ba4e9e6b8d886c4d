"""The examples run as they stand and print what the README says they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from test_study import TINY
from unlearnlab import study, studyfiles
from unlearnlab.engine import Local
from unlearnlab.spec import _registry, load_plugin, names
from unlearnlab.store import Store

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARE = re.compile(r"(\d+)%")


def printed(name: str, *words: str, folder: Path | None = None) -> list[str]:
    """The lines an example prints, with every warning an error."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "error", EXAMPLES / name, *words], capture_output=True, text=True, env=alone, timeout=200, cwd=folder)
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


@pytest.mark.slow
def test_own_model(tmp_path: Path) -> None:
    header, original, finetune, power = printed("own_model.py", folder=tmp_path)
    assert header.split()[:2] == ["method", "trace"]
    assert original.split()[:2] == ["original", "1.000"]
    assert finetune.split()[0] == "finetune"
    assert 0.5 < float(finetune.split()[1]) < 1.5
    assert power.startswith("Power: ")
    assert torch.load(tmp_path / "forgotten.pt", weights_only=True)["net.classifier.2.weight"].shape == (10, 64)


def test_my_method() -> None:
    forgot("my_method.py")


def test_my_method_is_a_plugin() -> None:
    try:
        load_plugin(EXAMPLES / "my_method.py")
        assert "leash" in names("method")
    finally:
        _registry["method"].pop("leash", None)


def test_my_refiner_and_my_score_run_in_a_study(tmp_path: Path) -> None:
    try:
        load_plugin(EXAMPLES / "my_refiner.py")
        changes = [*TINY, 'forget={name="by_score", score="darkness", count=12}', 'methods=[{name="rum", refine="odd_even", each=["finetune"]}]']
        with Local(1) as engine:
            runner = study.run(
                studyfiles.read("digits", changes)[1], "mine", Store(tmp_path), until="unlearn", engine=engine, plugins=(str(EXAMPLES / "my_refiner.py"),)
            )
        assert list(runner.forget_groups()) == ["darkness.low", "darkness.mid", "darkness.high"]
        assert list(runner.unlearned) == ["original", "retrain", "rum-odd_even-finetune"]
    finally:
        _registry["refiner"].pop("odd_even", None)
        _registry["score"].pop("darkness", None)
