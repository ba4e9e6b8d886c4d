"""docs/coming-from.md: every command and flag of the five works has its counterpart, and each of ours can be run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from unlearnlab import cli, estimating
from unlearnlab.studyfiles import read_family

PAGE = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text(encoding="utf-8")
# What the five works' own pages show, as far as it is a name that a user would look for.
SHOWN = {
    "DEL": (
        "run_pretrain.sh run_oracle_train.sh run_generat_mask.sh run_unlearn.sh pretrain.py oracle_train.py generate_mask.py unlearn.py --dataset --model"
        " --batch_size --learning_rate --epochs --base_dir --forget_ratio --forget_mode --forget_classes --forget_data_dir --pretrained_dir --critic_criteria"
        " --granularity --threshold --mask_dir --unlearning_alg iid noniid"
    ),
    "RUM": (
        "main_train.py main_rum.py main_forget.py generate_mask.py main_random.py analysis.py analysis_mia.py --dataset --arch --epochs --lr "
        "--batch_size --unlearn --mem --num_indexes_to_replace --unlearn_epochs --unlearn_lr --group_index --alpha --msteps --kd_T --beta --gamma "
        "--save --path --no_aug --mem_proxy retrain FT FT_prune GA NG SCRUB wfisher RL RL_og mix pluskid.github.io/influence-memorization "
    ),
    "Unlearn-Sparse": (
        "main_imp.py main_synflow.py main_forget.py main_backdoor.py --data --dataset --arch --prune_type rewind_lt --rewind_epoch --save_dir --rate "
        "--pruning_times --num_workers --mask --unlearn --num_indexes_to_replace --unlearn_epochs --unlearn_lr --alpha retrain FT GA fisher_new "
        "wfisher FT_prune "
    ),
    "Forget with Precision": "train_retain.ipynb create_logits.ipynb attack.py MODE two_stage_simple <data_path> <approach_name>",
}
OURS = sorted(set(re.findall(r"`(unlearnlab [^`]+)`", PAGE)))


def section(name: str) -> str:
    return PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("work", SHOWN)
def test_everything_shown_there_is_found_here(work: str) -> None:
    left = "\n".join(line.split(" | ")[0] for line in section(work).splitlines() if line.startswith("| "))
    missing = [word for word in SHOWN[work].split() if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", left)]
    assert not missing


def test_every_row_has_an_answer() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| there", "| flag", "| ---"))]
    assert len(rows) > 120
    for row in rows:
        assert all(cell.strip() for cell in row.strip("|").split(" | ")), row


@pytest.mark.parametrize("line", OURS)
def test_each_of_our_commands_is_dry_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(estimating, "pace", lambda *_: None)  # a few steps of a large net take long
    words = [word for word in shlex.split(line)[1:] if word not in ("PRESET", "STUDY")]
    if words[0] == "run" and len(words) > 1:
        assert cli.call([*words, "--dry-run", "--workers", "1"]) == 0, capsys.readouterr().err
        told = capsys.readouterr().out
        assert "models to train" in told
        assert "published:" in told
        assert not (tmp_path / "store").exists()
        return
    if len(words) > 1:
        _, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
        if words[0] in ("mask", "report", "export"):
            read_family(words[1], bound.arguments.get("changes") or ())
        elif words[0] == "show":
            told = cli.call(words), capsys.readouterr().err
            assert told[0] == 0 or "here it is called" in told[1]
    else:
        assert words[0] in cli.app
