"""The floors of the house: what may import what."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_point_to_lower_floors_only() -> None:
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_stands_on_a_floor() -> None:
    floors = (ROOT / ".importlinter").read_text()
    modules = {
        path.stem if path.is_file() else path.name for path in (ROOT / "src/unlearnlab").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    standing = {word.removeprefix("unlearnlab.") for word in floors.replace("|", " ").split() if word.startswith("unlearnlab.")}
    assert modules - {"__init__"} == standing


def test_no_file_name_says_nothing() -> None:
    vague = {"utils", "helpers", "common", "base"}
    assert not [path for path in (ROOT / "src").rglob("*.py") if path.stem in vague]
