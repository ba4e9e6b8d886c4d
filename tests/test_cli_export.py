"""``unlearnlab export``, on a real study at its smallest: what is written is what the study's models said."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from test_cli import Call, call, files
from unlearnlab import cli, filing
from unlearnlab.data.images import PARTS
from unlearnlab.layouts import Ensemble, Folder, read
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError
from unlearnlab.store import Store

__all__ = ["call"]  # the fixture

STUDY = """
title = "Exported"
models = 3
dataset = "digits"
partition = { name = "stratified", train = 60, held_out = 40, test = 50 }
net = { name = "mlp", hidden = [16] }
recipe = { name = "standard", epochs = 1 }
forget = { name = "random", count = 6 }
methods = ["finetune", { name = "sisa", shards = 2, slices = 1 }]
metrics = ["tow"]
"""
ROWS = ("finetune", "original", "retrain", "sisa")  # sisa only answers: no models are kept


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the study was run once; never written to."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "small.toml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("UNLEARNLAB_STORE", str(folder / "store"))
        assert cli.call(["run", str(folder / "small.toml"), "--workers", "1"]) == 0
    return folder / "store"


@pytest.fixture
def ran(call: Call, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    (tmp_path / "small.toml").write_text(STUDY)
    monkeypatch.setenv("UNLEARNLAB_STORE", str(made))
    return call


def said(store: Path, name: str) -> Outputs:
    """What the study's index names, read as the audit reads it."""
    index = json.loads((store / "studies" / "small" / "index.json").read_text())
    return Outputs.join([filing.read_outputs(store / entry) for entry in index[f"outputs/{name}"]])  # anew: a test may change them


def same(a: Outputs, b: Outputs) -> bool:
    return a.models == b.models and all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("logits", "member", "labels", "ids", "part"))


def ensembles(held: Folder) -> dict[str, Ensemble]:
    assert held.originals is not None
    return {"oracle": held.oracles, "original": held.originals, **{f"unlearned/{one.name}": one for one in held.approaches}}


def test_a_studys_own_folder_is_read(made: Path) -> None:
    held = read(made / "studies" / "small")
    assert held.layout == "study"
    assert tuple(one.name for one in held.approaches) == ROWS
    assert all(same(one.outputs, said(made, name)) for name, one in ensembles(held).items())
    assert held.notes == ()


def test_own_layout_keeps_everything(ran: Call, made: Path, tmp_path: Path) -> None:
    done = ran("export", "small.toml", "out")
    assert done.code == 0
    assert done.out == f"oracles and 4 approaches ({', '.join(ROWS)}) on 150 images: out\n"
    held = read(tmp_path / "out")
    assert held.layout == "plain"
    assert tuple(one.name for one in held.approaches) == ROWS
    assert all(same(one.outputs, said(made, name)) for name, one in ensembles(held).items())


def test_fwp_layout_is_the_published_one(ran: Call, made: Path, tmp_path: Path) -> None:
    done = ran("export", "small", "out", "--layout", "fwp")
    assert done.code == 0
    assert "on 6 images: out" in done.out
    assert files(tmp_path / "out") == sorted(
        ["logits_retain.npy", "metrics.csv", *ROWS, *(f"{row}/{file}" for row in ROWS for file in ("logits_unlearn.npy", "metrics.csv"))]
    )
    for name, folder in {"oracle": "", **{f"unlearned/{row}": row for row in ROWS}}.items():
        seen = said(made, name)
        array = np.load(tmp_path / "out" / folder / ("logits_unlearn.npy" if folder else "logits_retain.npy"))
        assert array.dtype == np.float32
        assert array.shape == (6, 1 + 3, 10)
        forget = (seen.part == PARTS.index("forget")).numpy()
        assert np.array_equal(array[:, 1:].transpose(1, 0, 2), seen.logits.numpy()[:, forget])
        assert np.array_equal(array[:, 0], np.eye(10)[seen.labels.numpy()[forget]])
        rows = list(csv.DictReader((tmp_path / "out" / folder / "metrics.csv").read_text().splitlines()))
        assert [int(row["seed"]) for row in rows] == list(seen.models)
        for part in ("retain", "forget", "test"):
            inside = seen.part.numpy() == PARTS.index(part)
            right = (seen.logits.numpy().argmax(-1) == seen.labels.numpy())[:, inside].mean(1)
            assert [float(row[f"{part}_accuracy"]) for row in rows] == pytest.approx(right, abs=1e-15)
    held = read(tmp_path / "out")
    assert held.originals is not None, "the row 'original'"
    assert torch.equal(held.originals.outputs.logits, said(made, "original").of("forget").logits)


def test_what_cannot_be_exported_is_told(ran: Call, call: Call, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    before = files(tmp_path)
    for words, told in (
        (("export", "small", "mine"), "mine is there already, and not empty; give a folder that is not there yet, or remove it first"),
        (("export", "small", "mine/notes.txt"), "mine/notes.txt is a file"),
        (("export", "small", "a/b"), f"there is no folder {tmp_path / 'a'} to write b in"),
        (("export", "tiny.toml", "out"), "study 'tiny' has not been run yet; run it first: unlearnlab run tiny.toml"),
        (("export", "digits", "out"), "study 'digits' has not been run yet; run it first: unlearnlab run digits"),
        (("export", "digit", "out"), "did you mean 'digits'?"),
        (("export", "small", "out", "--layout", "csv"), "csv"),
    ):
        done = ran(*words)
        assert done.code == 2, words
        assert done.out == ""
        assert told in done.err
        assert len(done.err.splitlines()) == 1
    assert files(tmp_path) == before
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "nowhere"))
    assert "has not been run yet" in call("export", "tiny.toml", "out").err
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_or_tidied_store_is_told(call: Call, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "copy"))
    index = json.loads((tmp_path / "copy" / "studies" / "small" / "index.json").read_text())
    file = tmp_path / "copy" / index["outputs/unlearned/finetune"][0] / "logits.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1  # the file can still be read
    file.write_bytes(raw)
    done = call("export", "small", "out")
    assert done.code == 2
    assert f"{index['outputs/unlearned/finetune'][0]} is no longer in the store {tmp_path / 'copy'}; make it again: unlearnlab run small" in done.err
    assert not (tmp_path / "out").exists()
    (tmp_path / "copy" / "studies" / "small" / "index.json").write_text('{"data": "data/x"}')
    assert "was not audited yet" in call("export", "small", "out").err


def test_models_in_several_chunks_are_joined(made: Path, tmp_path: Path) -> None:
    """As in a study of more models than fit a chunk."""
    whole = said(made, "oracle")
    root, index = tmp_path / "store", {}
    store = Store(root)
    for name in ("oracle", "original", "unlearned/finetune"):
        seen, keys = said(made, name), []
        for at in ([2], [0, 1]):
            key = f"{name.replace('/', '-')}-{at[0]}"
            store.make("outputs", key, lambda folder, at=at, seen=seen: filing.save_outputs(folder, seen.rows(at)), manifest={})
            keys.append(f"outputs/{key}")
        index[f"outputs/{name}"] = keys
    (store.study("two") / "index.json").write_text(json.dumps(index))
    held = read(root / "studies" / "two")
    assert same(held.oracles.outputs, whole.rows([2, 0, 1]))
    assert [one.name for one in held.approaches] == ["finetune"]


def test_a_method_that_diverged_is_left_out(call: Call, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "copy"))
    store, seen = Store(tmp_path / "copy"), said(made, "unlearned/finetune")
    seen.logits[1, 4, 0] = torch.nan
    store.make("outputs", "diverged", lambda folder: filing.save_outputs(folder, seen), manifest={})
    file = store.study("small") / "index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps(index | {"outputs/unlearned/finetune": ["outputs/diverged"]}))
    done = call("export", "small", "out")
    assert done.code == 0
    assert f"model of seed {seen.models[1]} has a NaN or infinite logit on example id {int(seen.ids[4])}" in done.out
    assert "note: finetune: is left out" in done.out
    assert not (tmp_path / "out" / "finetune.safetensors").exists()
    with pytest.raises(InputError, match="NaN or infinite"):
        read(store.study("small"), "finetune")
    file.write_text(json.dumps(index | {"outputs/oracle": ["outputs/diverged"]}))
    assert "NaN or infinite" in call("export", "small", "more").err


def test_requests_are_exported_one_by_one(call: Call, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store" / "studies" / "many.request-1").mkdir(parents=True)
    (tmp_path / "store" / "studies" / "many.request-1" / "audit.json").touch()
    assert "study 'many' has logits for each of its requests: unlearnlab export many.request-1" in call("export", "many.toml", "out").err
