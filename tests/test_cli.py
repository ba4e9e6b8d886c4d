"""The command: every verb, every exit code, and one clear line for everything that can be given wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from unlearnlab import cli, study, studyfiles

TINY = """
title = "Tiny"
models = 2
dataset = "digits"
partition = { name = "stratified", train = 60, held_out = 40, test = 50 }
corruption = { name = "symmetric_noise", share = 0.2 }
net = { name = "mlp", hidden = [16] }
recipe = { name = "standard", epochs = 1 }
forget = { name = "random", count = 6 }
methods = [{ name = "salun", epochs = 1 }]
metrics = ["ua"]
"""
PLUGIN = '''
from typing import Annotated
import torch
from unlearnlab.spec import InputError, Setting, spec

@spec("method", "{name}")
class Shrink:
    """Shrink the open weights a little."""
    reads = frozenset({{"forget"}})
    null = {{"share": 0.0}}
    share: Annotated[float, Setting("how much of each weight goes", ge=0, le=1)] = 0.1

    def __call__(self, stack, split, ctx):
        {body}
'''
SOUND = """small = {n: t * (1 - self.share) for n, t in stack.params.items()}
        return stack.having(small if ctx.mask is None else ctx.mask.choose(small, stack.params))"""


@dataclass
class Said:
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command line in this process, in a folder of its own with tiny.toml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    (tmp_path / "tiny.toml").write_text(TINY)

    def run(*words: str) -> Said:
        code = cli.call(words)
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def ran(call: Call) -> Call:
    """The same, after the tiny study has been run."""
    assert call("run", "tiny.toml", "--workers", "1").code == 0
    return call


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- starting up


def test_help_is_instant_and_loads_nothing_heavy() -> None:
    def seconds() -> float:
        """Of computing, since others may be using the machine."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "unlearnlab", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) <= 0.5
    code = "import sys; from unlearnlab.cli import call; call(['--help']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "numpy", "scipy", "sklearn", "matplotlib", "unlearnlab.study", "rich.progress"} & set(loaded)


def test_every_command_has_a_help_text(call: Call) -> None:
    helped = call("--help").out
    for name in ("demo", "run", "score", "report", "presets", "list", "show", "why", "check", "tidy"):
        assert re.search(rf"^│ {name} +\w", helped, re.M), name
        assert call(name, "--help").code == 0


def test_version(call: Call) -> None:
    assert re.fullmatch(r"unlearnlab \d+\.\d+\.\d+\n", call("--version").out)


def test_stages_are_those_of_a_study() -> None:
    assert get_args(cli.Stage) == study.STAGES


# ---- running


def test_run_makes_a_table_and_a_report_and_tells_stages_plainly(call: Call, tmp_path: Path) -> None:
    said = call("run", "tiny.toml", "--workers", "1")
    page = tmp_path / "store/studies/tiny/report.html"
    assert said.code == 0
    assert "salun" in said.out
    assert said.out.endswith(f"report: {page}\n")
    assert page.exists()
    assert [line.partition(":")[0] for line in said.err.splitlines()] == ["original", "oracle", "mask", "control", "unlearn", "observe", "audit"]
    assert call("run", "tiny.toml", "--workers", "1").err == ""  # everything is reused


def test_bars_on_a_terminal(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    said = call("run", "tiny.toml", "--workers", "1")
    assert said.code == 0
    assert re.search(r"unlearn.*━━.*3/3", said.err)
    assert "done after" not in said.err


def test_run_until_a_stage(call: Call, tmp_path: Path) -> None:
    said = call("run", "tiny.toml", "--until", "original", "--workers", "1", "--set", "models=1")
    assert said.code == 0
    assert "done up to stage 'original'" in said.out
    assert not (tmp_path / "store/studies/tiny/report.html").exists()
    assert len(list((tmp_path / "store/stacks").glob("*"))) == 1


def test_demo_is_the_preset_digits(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(studyfiles, "read_family", lambda name, changes, small: (_ for _ in ()).throw(KeyboardInterrupt(asked.append(name))))
    assert call("demo").code == 130
    assert asked == ["digits"]


def test_a_failed_audit_names_the_methods(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.Runner, "failed", property(lambda _: ["salun"]))
    said = call("run", "tiny.toml", "--workers", "1")
    assert said.code == 1
    assert said.err.endswith("unlearnlab: the audit failed for: salun\n")


def test_report_again(ran: Call, tmp_path: Path) -> None:
    page = tmp_path / "store/studies/tiny/report.html"
    page.unlink()
    said = ran("report", "tiny.toml")
    assert said.code == 0
    assert "salun" in said.out
    assert page.exists()


def test_plugins(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.format(name="cli_shrink", body=SOUND))
    said = call("run", "tiny.toml", "--plugin", "mine.py", "--set", 'methods=["cli_shrink"]', "--workers", "1")
    assert (said.code, "cli_shrink" in said.out) == (0, True)


def test_interrupting_is_told_and_resumable(call: Call, tmp_path: Path) -> None:
    words = ["run", "tiny.toml", "--workers", "1", "--set", "recipe.epochs=100000"]
    process = subprocess.Popen([sys.executable, "-m", "unlearnlab", *words], stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 30
    while not list(tmp_path.glob("store/stacks/*.lock")) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "unlearnlab: interrupted; run the same command again to go on\n"
    assert process.returncode == 130
    assert not list(tmp_path.glob("store/stacks/*.lock"))


# ---- the dry run


def test_dry_run_makes_nothing(call: Call, tmp_path: Path) -> None:
    said = call("run", "tiny.toml", "--dry-run")
    assert said.code == 0
    assert "models to train: 10 at most, reused: unknown" in said.out  # originals, oracles, and 2 for each of 3 methods
    assert "reuse unknown" in said.out
    assert "timed here just now (cpu)" in said.out
    assert not (tmp_path / "store").exists()
    assert "models to train: 4 at most" in call("run", "tiny.toml", "--dry-run", "--until", "oracle").out


def test_dry_run_counts_what_is_there(ran: Call, tmp_path: Path) -> None:
    before = files(tmp_path / "store")
    said = ran("run", "tiny.toml", "--dry-run")
    assert "models to train: 0, reused: 10" in said.out
    changed = ran("run", "tiny.toml", "--dry-run", "--set", "methods.salun.budget=0.3").out
    assert "models to train: 2, reused: 8" in changed
    assert "timed here just now" in changed
    grown = ran("run", "tiny.toml", "--dry-run", "--set", "forget.draw=1", "--workers", "1").out
    assert re.search(r"original +originals +2 +0 +2\n", re.sub(" +\n", "\n", grown))  # originals never see the forget set
    assert "models to train: 8, reused: 2" in grown
    assert re.search(r"time: about \d+ s of training and unlearning with 1 worker", grown)
    retrained = ran("run", "tiny.toml", "--dry-run", "--set", "net.hidden=[8]").out
    assert "models to train: 10, reused: 0" in retrained
    assert "timed here just now" in retrained
    assert files(tmp_path / "store") == before


# ---- looking around


def test_presets(call: Call) -> None:
    assert re.search(r"^digits +Forgetting", call("presets").out, re.M)
    assert call("presets", "digits").out.endswith(studyfiles.presets()["digits"].read_text())  # after comments on where settings come from


@pytest.mark.parametrize(
    ("kind", "word"),
    [("methods", "salun "), ("method", "salun "), ("localisers", "grad_param "), ("metrics", "trace "), ("datasets", "digits "), ("nets", "mlp "),
     ("recipes", "standard "), ("forget", "random "), ("presets", "digits "), ("artefacts", "artefact: none yet"), ("refiners", "by_score "),
     ("scores", "memorisation "), ("prunings", "omp "), ("requests", "in_order")],
)  # fmt: skip
def test_list(call: Call, kind: str, word: str) -> None:
    said = call("list", kind)
    assert said.code == 0
    assert re.search(f"^{word}", said.out, re.M)


def test_show_a_spec(call: Call) -> None:
    said = call("show", "salun").out
    assert "arXiv:2310.12508" in said
    assert "Train with random labels on the forget set" in said
    assert re.search(r"budget +0\.5 +number", said)
    assert re.search(r"^reads: forget, retain$", said, re.M)
    assert re.search(r"^certified: no$", said, re.M)
    assert re.search(r"passes +concat +concat, +", said)
    assert re.search(r"optimizer +sgd +optimizer ", said)
    both = call("show", "random").out
    assert "localiser 'random'" in both
    assert "forget 'random'" in both
    assert re.search(r"mislabelled +none +whole", both)


def test_artefacts_are_listed_shown_and_compared(ran: Call) -> None:
    listed = ran("list", "artefacts").out
    standard = re.findall(r"stacks/(\w+) +standard", listed)
    assert len(standard) == 2
    shown = json.loads(ran("show", standard[0]).out)
    assert shown["spec"]["name"] == "standard"
    assert re.search(r"seeds: .* -> ", ran("why", *standard).out)  # originals and oracles draw from seeds of their own
    assert "are the same artefact" in ran("why", standard[0], standard[0]).out


# ---- checking and tidying


def test_check_passes_a_sound_method(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN.format(name="cli_sound", body=SOUND))
    said = call("check", "mine.py")
    assert (said.code, said.err) == (0, "")
    assert said.out.count("✓") == 10
    assert "✗" not in said.out


@pytest.mark.parametrize(
    ("check", "body"),
    [
        ("reads", "len(split.retain); return stack.having()"),
        ("keys", "return stack.having({n: t.double() for n, t in stack.params.items()})"),
        ("keys", "return None"),
        ("moves", "return stack.having()"),
        ("null", "return stack.having({n: t * 0.9 for n, t in stack.params.items()})"),
        ("side effects", "[t.mul_(1 - self.share) for t in stack.params.values()]; return stack.having()"),
        ("deterministic", "return stack.having({n: t + self.share * torch.rand_like(t) for n, t in stack.params.items()})"),
        ("stacked", "return stack.having({n: t - self.share * t.mean() for n, t in stack.params.items()})"),
        ("mask", "return stack.having({n: t * (1 - self.share) for n, t in stack.params.items()})"),
        ("reads", "raise ValueError('of no use')"),
    ],
)
def test_check_finds(call: Call, tmp_path: Path, check: str, body: str) -> None:
    name = f"cli_wrong_{abs(hash(body))}"
    (tmp_path / "mine.py").write_text(PLUGIN.format(name=name, body=body))
    said = call("check", "mine.py")
    assert said.code == 1
    assert f"✗ {name}: {check}: " in said.out


def test_check_wants_a_method_with_defaults_and_declarations(call: Call, tmp_path: Path) -> None:
    text = PLUGIN.format(name="cli_bare", body=SOUND)
    (tmp_path / "mine.py").write_text(text.replace(" = 0.1", ""))
    assert "✗ cli_bare: build: " in call("check", "mine.py").out
    (tmp_path / "mine.py").write_text(text.replace("cli_bare", "cli_mute").replace("null = ", "nil = "))
    assert "✗ cli_mute: declares: it lacks 'null'" in call("check", "mine.py").out


def test_tidy_keeps_what_studies_name(ran: Call, tmp_path: Path) -> None:
    store, kept = tmp_path / "store", len(ran("list", "artefacts").out.splitlines())
    assert "freed 0 B" in ran("tidy").out
    before = files(store)
    (tmp_path / "other.toml").write_text(TINY.replace("count = 6", "count = 7"))
    assert ran("run", "other.toml", "--workers", "1").code == 0
    both = files(store)
    (store / "studies/other/index.json").unlink()
    dry = ran("tidy", "--dry-run")
    assert re.search(r"would free \d+\.\d kB", dry.out)
    assert "study 'other' was never finished" in dry.err
    assert [name for name in both if name not in files(store)] == ["studies/other/index.json"]
    assert ran("tidy").code == 0
    assert [name for name in files(store) if "studies/other" not in name] == before
    assert len(ran("list", "artefacts").out.splitlines()) == kept
    (store / "studies/tiny/index.json").write_text("{")
    assert ran("tidy").code == 2  # rather nothing than what a study needs


# ---- bad input: exit code 2, one line, no traceback


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["frobnicate"], "Unknown command"),
        (["run"], "STUDY requires an argument"),
        (["run", "tiny.toml", "--wrokers", "2"], "Did you mean --workers?"),
        (["run", "tiny.toml", "--workers", "two"], 'unable to convert "two"'),
        (["run", "tiny.toml", "--workers", "0"], "--workers 0 is out of range"),
        (["run", "tiny.toml", "--until", "oracl"], 'Did you mean "oracle"?'),
        (["run", "tiny.toml", "--engine", "dask"], 'Choose from: "local", "ray", "slurm"'),
        (["run", "tiny.toml", "--address", "auto"], "--address is for --engine ray, and the engine is local"),
        (["run", "tiny.toml", "--gpus-per-job", "0.25", "--engine", "slurm"], "--gpus-per-job is for --engine ray, and the engine is slurm"),
        (["tune", "tiny.toml", "salun", "--slurm.per-job", "3"], "--slurm.per-job is for --engine slurm, and the engine is local"),
        (["run", "tiny.toml", "--trial"], "give it with --dry-run"),
        (["run", "tiny.toml", "--engine", "ray", "--address", "auto", "--workers", "4"], "--workers 4 is for a cluster started here"),
        (["run", "tiny.toml", "--engine", "slurm", "--slurm.cluster", "local", "--slurm.partition", "gpu"], "--slurm.partition gpu is for a real Slurm"),
        (["run", "tiny.toml", "--dry-run", "--workers", "0"], "--workers 0 is out of range: expected at least 1"),
        (["run", "tiny.toml", "--engine", "ray", "--gpus-per-job", "-1"], "--gpus-per-job -1.0 is out of range: expected 0 or more"),
        (["run", "tiny.toml", "--engine", "ray", "--cpus-per-job", "0"], "--cpus-per-job 0.0 is out of range: expected a number more than 0"),
        (["run", "tiny.toml", "--engine", "ray", "--memory-per-job", "nan"], "--memory-per-job nan is out of range: expected a number more than 0"),
        (["run", "tiny.toml", "--engine", "slurm", "--slurm.gpus", "-1"], "--slurm.gpus -1 is out of range: expected 0 or more"),
        (["run", "tiny.toml", "--engine", "slurm", "--slurm.per-job", "0"], "--slurm.per-job 0 is out of range: expected at least 1"),
        (["run", "digts"], "did you mean 'digits'?"),
        (["run", "gone.toml"], "No such file"),
        (["run", "tiny.toml", "--plugin", "gone.py"], "cannot read the plugin"),
        (["run", "tiny.toml", "--set", "models"], "expected a.b=value"),
        (["run", "tiny.toml", "--set", "model=3"], "did you mean 'models'?"),
        (["run", "tiny.toml", "--set", "models=many"], "expected a whole number"),
        (["run", "tiny.toml", "--set", 'methods=["salunn"]'], "did you mean 'salun'?"),
        (["run", "tiny.toml", "--set", "methods.salun.epoch=3"], "did you mean 'epochs'?"),
        (["run", "tiny.toml", "--set", "methods.salun.budget=30"], "budget = 30.0 is out of range: expected more than 0 and at most 1"),
        (["run", "tiny.toml", "--dry-run", "--set", "methods.salun.budget=30"], "is out of range"),
        (["run", "tiny.toml", "--set", 'methods.salun.lr="high"'], "has the wrong type: expected a number"),
        (["run", "tiny.toml", "--set", 'forget={name="ids", ids=[99999]}'], "99999 is not in the training set"),
        (["run", "tiny.toml", "--set", 'forget={name="ids", ids=[3, 3]}'], "3 is given twice"),
        (["run", "tiny.toml", "--set", 'forget={name="ids", ids=[]}'], "the forget set is empty"),
        (["run", "tiny.toml", "--set", "forget.count=60"], "is the whole training set"),
        (["report", "tiny.toml"], "has not been run yet; run it first: unlearnlab run tiny.toml"),
        (["report", "digts"], "did you mean 'digits'?"),
        (["presets", "digts"], "did you mean 'digits'?"),
        (["list", "methodes"], "did you mean 'methods'?"),
        (["show", "sallun"], "did you mean 'salun'?"),
        (["why", "aa", "bb"], "there is no store here yet"),
        (["tidy"], "there is no store here yet"),
        (["check", "gone.py"], "cannot read the plugin"),
        (["check", "tiny.toml"], "is not a Python file"),
    ],
)
def test_bad_input(call: Call, words: list[str], expected: str) -> None:
    said = call(*words, *(["--workers", "1"] if "--set" in words else []))
    assert said.code == 2
    last = said.err.splitlines()[-1]
    assert last.startswith("unlearnlab: ")
    assert expected in last
    assert said.err.count("unlearnlab: ") == 1
    assert said.out == ""


def test_a_store_that_cannot_be_written(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "file/store"))
    said = call("run", "tiny.toml", "--workers", "1")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "is not writable: Not a directory; choose another with $UNLEARNLAB_STORE" in said.err


def test_python_m_and_a_reader_that_leaves() -> None:
    command = [sys.executable, "-m", "unlearnlab"]
    said = subprocess.run([*command, "frobnicate"], capture_output=True, text=True)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    process = subprocess.Popen([*command, "list", "forget"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    process.stderr.close()
