"""Folders of logits: what is read is what was written, in every layout, and everything that does not fit is told in one line."""

from __future__ import annotations

import errno
import io
import json
import re
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from unlearnlab.data.images import PARTS
from unlearnlab.layouts import Ensemble, accuracies, read, write_fwp, write_plain
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError

HEAD = "seed,retain_accuracy,forget_accuracy,test_accuracy\n"
N, C = 6, 4
LABELS = np.arange(N) % C
Edit = Callable[[np.ndarray], np.ndarray]


def logits(models: int = 3, seed: int = 0, n: int = N, classes: int = C) -> np.ndarray:
    """[models, examples, classes]"""
    return np.random.default_rng(seed).normal(0, 3, (models, n, classes)).astype(np.float32)


def published(values: np.ndarray, labels: np.ndarray = LABELS) -> np.ndarray:
    """As the published arrays are: a loop over examples, the one-hot label before the models."""
    rows = [np.stack([np.eye(values.shape[-1], dtype=values.dtype)[label], *values[:, at]]) for at, label in enumerate(labels)]
    return np.stack(rows)


@pytest.fixture
def fwp(tmp_path: Path) -> Path:
    """Three oracles, and two approaches of three and four models."""
    folder = tmp_path / "data"
    for at, name in enumerate(("", "prune", "finetune")):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / (f"logits_{'unlearn' if name else 'retain'}.npy"), published(logits(3 + (at == 2), at)))
        (folder / name / "metrics.csv").write_text(HEAD + "".join(f"{seed},0.9{seed},0.5,0.{seed}\n" for seed in range(3 + (at == 2))))
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    folder.mkdir()
    for at, name in enumerate(("oracles", "originals", "salun")):
        np.savez(folder / f"{name}.npz", **whole(seed=at))
    return folder


def whole(**how: int) -> dict[str, Any]:
    """All arrays of a plain file: two images to forget, four kept."""
    return {"logits": logits(**how), "labels": LABELS, "ids": np.arange(10, 10 + N), "part": np.array([0, 0, 1, 1, 1, 4])}


def put(file: Path, **changes: Any) -> None:
    """Write a plain file again with other arrays; None leaves one out."""
    arrays = {name: held for name, held in {**np.load(file), **changes}.items() if held is not None}
    np.savez(file, **arrays)


def refused(folder: Path, approach: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, approach)
    said = str(caught.value)
    assert "\n" not in said
    return said


def same(a: Outputs, b: Outputs) -> bool:
    return a.models == b.models and all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("logits", "member", "labels", "ids", "part"))


# ---- the published layout


def test_the_published_layout_is_read(fwp: Path) -> None:
    held = read(fwp)
    assert held.layout == "fwp"
    assert held.originals is None
    assert [one.name for one in held.approaches] == ["finetune", "prune"], "by name"
    for one, seed in ((held.oracles, 0), (held.approaches[1], 1), (held.approaches[0], 2)):
        assert np.array_equal(one.outputs.logits.numpy(), logits(len(one.outputs), seed))
        assert one.outputs.labels.tolist() == LABELS.tolist()
        assert one.outputs.ids.tolist() == list(range(N))
        assert one.outputs.part.tolist() == [PARTS.index("forget")] * N
        assert one.outputs.logits.is_contiguous()
    assert not held.oracles.outputs.member.any(), "oracles never saw them"
    assert held.approaches[0].outputs.member.all()
    assert held.notes == ()
    assert held.oracles.source == fwp / "logits_retain.npy"
    assert held.approaches[1].source == fwp / "prune" / "logits_unlearn.npy"


def test_nobody_is_taken_for_an_oracles_pair(fwp: Path) -> None:
    held = read(fwp)
    assert not set(held.oracles.outputs.models) & set(held.approaches[1].outputs.models)
    assert len(set(held.approaches[1].outputs.models)) == 3


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_float_is_read_as_it_is(fwp: Path, kind: str, order: Any) -> None:
    values = logits(5, 7).astype(kind)
    np.save(fwp / "prune" / "logits_unlearn.npy", np.asarray(published(values), order=order))
    found = read(fwp, "prune").approaches[0].outputs.logits
    assert np.array_equal(found.numpy(), values.astype(values.dtype.newbyteorder("=")))
    assert found.numpy().dtype == np.dtype(kind).newbyteorder("=")
    assert found.is_contiguous()


def test_a_single_example_is_read_without_keeping_the_file_open(fwp: Path) -> None:
    for at, name in enumerate(("logits_retain.npy", "prune/logits_unlearn.npy")):
        np.save(fwp / name, published(logits(n=1, seed=at), LABELS[:1]))
    held = read(fwp, "prune")
    held.oracles.outputs.logits.add_(1)  # its own memory, not the file's
    assert np.array_equal(np.load(fwp / "logits_retain.npy"), published(logits(n=1), LABELS[:1]))


def test_memory_stays_near_one_copy(fwp: Path) -> None:
    many = logits(40, n=500, classes=20)
    size, labels = many.nbytes, np.arange(500) % 20
    np.save(fwp / "logits_retain.npy", published(many, labels))
    np.save(fwp / "prune" / "logits_unlearn.npy", published(logits(2, 1, 500, 20), labels))
    tracemalloc.start()
    read(fwp, "prune")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size < peak < 1.5 * size


def test_accuracies_of_the_table_are_shares(fwp: Path) -> None:
    (fwp / "prune" / "metrics.csv").write_text(
        "\ufeffname, seed, retain_accuracy, forget_accuracy, test_accuracy\nx, 1, 99.5, 0, 80\ny, 1, 98, 50.25, 81\n", encoding="utf-8"
    )
    held = read(fwp)
    finetune, prune = held.approaches
    assert prune.accuracies["retain"].tolist() == [0.995, 0.98], "percent, a mark of UTF-8, further columns and repeated seeds do no harm"
    assert prune.accuracies["forget"].tolist() == [0.0, 0.5025]
    assert finetune.accuracies["test"].tolist() == [0.0, 0.1, 0.2, 0.3], "shares"
    assert held.notes == ("prune/metrics.csv has 2 row(s) for 3 models",)


def test_a_share_among_percent_is_told(fwp: Path) -> None:
    (fwp / "prune" / "metrics.csv").write_text(HEAD + "0,99,0.8,80\n1,99,0.7,80\n2,99,0.6,80\n")
    held = read(fwp, "prune")
    assert held.approaches[0].accuracies["forget"][0] == 0.008
    assert any("forget_accuracy, at most 0.8, is taken as percent" in note for note in held.notes)


def test_a_folder_without_tables_says_so(fwp: Path) -> None:
    (fwp / "metrics.csv").unlink()
    (fwp / "prune" / "metrics.csv").unlink()
    (fwp / "figures").mkdir()
    held = read(fwp)
    assert held.oracles.accuracies == {}
    assert held.notes == (
        "figures: has no logits_unlearn.npy, and is left out",
        "no metrics.csv for the oracles, prune: accuracies on other images are unknown",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed,accuracy\n1,0.5\n", "no column retain_accuracy, forget_accuracy, test_accuracy"),
        ("", "it has: nothing"),
        (HEAD, "no row below its heading"),
        (HEAD + "1,.9,good,.8\n", "forget_accuracy in line 2 is 'good'"),
        (HEAD + "1,.9,.5,.8\n2,.9,nan,.8\n", "forget_accuracy in line 3 is 'nan'"),
        (HEAD + "1,.9,.5\n2,.9,.5,.8\n", "test_accuracy in line 2 is ''"),
        (HEAD + "1,101,50,80\n", "retain_accuracy in line 2 is '101'"),
        (HEAD + "1,-.1,.5,.8\n", "retain_accuracy in line 2 is '-.1'"),
        (HEAD + "1,,,\n", "no accuracy in it"),
    ],
)
def test_a_bad_table_is_refused(fwp: Path, text: str, words: str) -> None:
    (fwp / "prune" / "metrics.csv").write_text(text)
    said = refused(fwp)
    assert str(fwp / "prune" / "metrics.csv") in said
    assert words in said


def test_a_table_that_is_no_text_is_refused(fwp: Path) -> None:
    (fwp / "prune" / "metrics.csv").write_bytes(b"\xff\xfe\x00PK")
    assert "prune/metrics.csv" in refused(fwp)


def spoilt(at: tuple[int, ...], value: float) -> Edit:
    def edit(array: np.ndarray) -> np.ndarray:
        array[at] = value
        return array

    return edit


def no_label(array: np.ndarray) -> np.ndarray:
    array[2, 0] = 0
    return array


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda a: a[0], "2 dimension(s), [4, 4]; expected 3, (examples, 1 + models, classes)"),
        (lambda a: a[None], "4 dimension(s)"),
        (lambda a: a.swapaxes(0, 1), "examples and models look exchanged, save array.swapaxes(0, 1)"),
        (lambda a: a[:, 1:], "the labels look left out"),
        (lambda a: a[:, :1], "a label and no model"),
        (lambda a: a[:, :2], "holds one model; a distribution needs at least 2"),
        (lambda a: a[:0], "0 example(s)"),
        (lambda a: np.ones_like(a[..., :1]), "of 1 class(es)"),
        (no_label, "slot 0 of example 2 is all zero, which is no one-hot label (1 of 6 such examples)"),
        (spoilt((3, 0, 0), 1), "slot 0 of example 3 holds [1, 0, 0, 1]"),
        (spoilt((3, 0, 3), 0.9), "slot 0 of example 3 holds [0, 0, 0, 0.9]"),
        (spoilt((3, 0, 0), np.nan), "slot 0 of example 3 holds [nan, 0, 0, 1]"),
        (spoilt((4, 2, 1), np.nan), "model 1 (counted from 0) has a NaN or infinite logit on example 4 (counted from 0)"),
        (spoilt((5, 3, 0), -np.inf), "model 2 (counted from 0) has a NaN or infinite logit on example 5"),
        (lambda a: a.astype(int), "are of type int64; expected float16, float32 or float64"),
        (lambda a: a.astype(complex), "complex128"),
        (lambda a: a[:, :, :3][LABELS != 3], "has 3 classes and"),
        (lambda a: a[:5], "has 5 examples and"),
        (lambda a: a[::-1], "differ on 6 of 6 examples (first: row 0, 1 and 0)"),
    ],
)
def test_a_bad_array_is_refused(fwp: Path, edit: Edit, words: str) -> None:
    file = fwp / "prune" / "logits_unlearn.npy"
    np.save(file, edit(published(logits(seed=1))))
    said = refused(fwp)
    assert str(file) in said
    assert words in said
    assert "finetune" not in said


def test_probabilities_are_no_logits(fwp: Path) -> None:
    values = torch.from_numpy(logits(seed=1)).softmax(-1).numpy()
    np.save(fwp / "prune" / "logits_unlearn.npy", published(values))
    assert "holds probabilities" in refused(fwp)
    np.save(fwp / "prune" / "logits_unlearn.npy", published(np.log(values)))
    assert read(fwp, "prune").approaches, "their logarithms do"


class Trap:
    """Would be run by whoever unpickles it."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("layout", ["npy", "pickle", "npz"])
def test_pickles_are_never_opened(fwp: Path, plain: Path, layout: str) -> None:
    import pickle

    array = np.array([Trap()], dtype=object)
    file = plain / "salun.npz" if layout == "npz" else fwp / "prune" / "logits_unlearn.npy"
    with file.open("wb") as raw:
        if layout == "npz":
            np.savez(raw, logits=array, labels=LABELS)
        elif layout == "npy":
            np.save(raw, array, allow_pickle=True)
        else:
            pickle.dump(Trap(), raw)
    said = refused(file.parent if layout == "npz" else fwp)
    assert str(file) in said
    assert ("another format" if layout == "pickle" else "never opened") in said


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors"])
def test_a_file_cut_short_is_refused_wherever_it_is_cut(fwp: Path, plain: Path, ending: str) -> None:
    folder, file = (fwp, fwp / "prune" / "logits_unlearn.npy") if ending == "npy" else (plain, plain / f"salun.{ending}")
    if ending == "safetensors":
        (plain / "salun.npz").unlink()
        save_file(whole(seed=2), file)
    sound = file.read_bytes()
    assert read(folder).approaches
    for size in [*range(0, len(sound), max(1, len(sound) // 40)), len(sound) - 1]:
        file.write_bytes(sound[:size])
        said = refused(folder)
        assert str(file) in said
        assert "cut short" in said


def test_an_archive_is_no_array(fwp: Path) -> None:
    with (fwp / "logits_retain.npy").open("wb") as raw:
        np.savez(raw, a=np.zeros(3))
    assert "of another format" in refused(fwp)
    np.save(fwp / "array.npy", logits())
    (fwp / "array.npy").rename(fwp / "oracles.npz")
    save_file(whole(), fwp / "salun.safetensors")
    (fwp / "logits_retain.npy").unlink()
    assert "of another format" in refused(fwp)


# ---- which folder


def test_folders_that_are_none(fwp: Path, plain: Path, tmp_path: Path) -> None:
    assert f"there is no folder {tmp_path / 'nowhere'}" in refused(tmp_path / "nowhere")
    assert "is a file; give the folder that it is in" in refused(fwp / "metrics.csv")
    (tmp_path / "empty").mkdir()
    assert f"the folder {tmp_path / 'empty'} is empty" in refused(tmp_path / "empty")
    assert "holds no logits (there are: data, empty, plain); expected logits_retain.npy" in refused(tmp_path)
    (fwp / "logits_retain.npy").rename(plain / "logits_retain.npy")
    assert "logits_retain.npy is missing" in refused(fwp)
    assert "logits_retain.npy and oracles.npz, of two layouts" in refused(plain)


def test_no_approach_and_no_oracles(plain: Path) -> None:
    (plain / "salun.npz").unlink()
    assert "no approach" in refused(plain)
    (plain / "oracles.npz").rename(plain / "salun.npz")
    assert "holds no oracles (there are: originals.npz, salun.npz)" in refused(plain)
    for name in ("oracle", "oracles"):
        put(plain / "salun.npz")
        (plain / f"{name}.npz").write_bytes((plain / "salun.npz").read_bytes())
    assert "two sets of oracles" in refused(plain)


def test_one_approach_alone_is_read(fwp: Path) -> None:
    (fwp / "finetune" / "logits_unlearn.npy").write_bytes(b"broken")
    assert [one.name for one in read(fwp, "prune").approaches] == ["prune"]
    said = refused(fwp, "prunes")
    assert "no approach 'prunes'; did you mean 'prune'? (it has: finetune, prune)" in said


# ---- plain files


def test_plain_files_are_read(plain: Path) -> None:
    held = read(plain)
    assert held.layout == "plain"
    assert held.originals is not None
    assert [one.name for one in held.approaches] == ["salun"]
    for one, seed in ((held.oracles, 0), (held.originals, 1), (held.approaches[0], 2)):
        assert np.array_equal(one.outputs.logits.numpy(), logits(seed=seed))
        assert one.outputs.ids.tolist() == list(range(10, 10 + N))
        assert one.outputs.part.tolist() == [0, 0, 1, 1, 1, 4]
        assert one.accuracies == {}
    assert held.oracles.outputs.member[0].tolist() == [False, False, True, True, True, False], "what a role implies, where the file is silent"
    assert held.originals.outputs.member[2].tolist() == [True] * 5 + [False]
    assert not set(held.oracles.outputs.models) & set(held.approaches[0].outputs.models)


def test_logits_and_labels_are_enough(plain: Path) -> None:
    for file in plain.iterdir():
        put(file, ids=None, part=None)
    seen = read(plain).approaches[0].outputs
    assert seen.part.tolist() == [0] * N
    assert seen.ids.tolist() == list(range(N))


def test_what_one_file_says_holds_for_all(plain: Path) -> None:
    put(plain / "oracles.npz", ids=None, part=None)
    put(plain / "originals.npz", part=None)
    held = read(plain)
    assert held.oracles.outputs.ids.tolist() == list(range(10, 10 + N))
    assert held.oracles.outputs.part.tolist() == [0, 0, 1, 1, 1, 4]
    put(plain / "originals.npz", ids=np.arange(N))
    assert "ids of" in refused(plain), "though the oracles' file says nothing"


def test_words_seeds_and_membership_are_read(plain: Path) -> None:
    words = np.array(["forget", "forget", "retain", "retain", "control", "test"])
    member = np.zeros((3, N), dtype=np.uint8)
    member[1, 2] = 1
    for file in plain.iterdir():
        put(file, part=words)
    put(plain / "oracles.npz", part=words.astype("S"), models=np.array([7, 5, 6]), member=member)
    put(plain / "salun.npz", member=np.array([True] * 3 + [False] * 3))
    held = read(plain)
    assert held.oracles.outputs.part.tolist() == [0, 0, 1, 1, 3, 4]
    assert held.oracles.outputs.models == (7, 5, 6)
    assert held.oracles.outputs.member.tolist() == (member == 1).tolist()
    assert held.approaches[0].outputs.member.tolist() == [[True] * 3 + [False] * 3] * 3
    assert held.approaches[0].outputs.models == (8, 9, 10), "numbered on from the oracles"


def test_safetensors_are_read(plain: Path) -> None:
    (plain / "salun.npz").unlink()
    arrays = whole(seed=2)
    save_file({**arrays, "logits": arrays["logits"].astype(np.float16)}, plain / "salun.safetensors", metadata={"models": "[4, 3, 9]"})
    seen = read(plain).approaches[0].outputs
    assert seen.logits.dtype == torch.float16
    assert np.array_equal(seen.logits.numpy(), logits(seed=2).astype(np.float16))
    assert seen.models == (4, 3, 9)


def test_bfloat16_is_read_exactly(plain: Path) -> None:
    from safetensors.torch import save_file as save_torch

    values = torch.from_numpy(logits(seed=2)).bfloat16()
    (plain / "salun.npz").unlink()
    save_torch({"logits": values, "labels": torch.from_numpy(LABELS)}, plain / "salun.safetensors")
    seen = read(plain).approaches[0].outputs.logits
    assert seen.dtype == torch.float32
    assert torch.equal(seen, values.float())


def test_one_original_for_all_is_enough(plain: Path) -> None:
    put(plain / "originals.npz", logits=logits(1, 5))
    held = read(plain)
    assert held.originals is not None
    assert len(held.originals.outputs) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits": None}, "has no array 'logits'; expected logits [models, examples, classes] and labels [examples] (it has: labels, ids, part)"),
        ({"labels": None}, "has no array 'labels'"),
        ({"logits": logits()[0]}, "2 dimension(s)"),
        ({"logits": logits().swapaxes(0, 1)}, "expected labels [3] for [models, examples, classes]: examples and models look exchanged"),
        ({"logits": logits(1)}, "one model"),
        ({"labels": LABELS[:4]}, "labels and logits must be of the same examples"),
        ({"labels": LABELS + 1}, "example id 13 has the label 4, and the logits are of 4 classes; expected labels 0 to 3 (1 such example(s))"),
        ({"labels": LABELS - 1, "ids": None}, "example 0 (counted from 0) has the label -1"),
        ({"labels": np.eye(C)[LABELS]}, "labels are of type float64; expected whole numbers"),
        ({"labels": np.eye(C, dtype=int)[LABELS]}, "save their argmax"),
        ({"labels": np.array(list("abcdef"))}, "expected whole numbers"),
        ({"ids": np.arange(4)}, "ids has the shape [4]; expected [6] (one for each example)"),
        ({"part": np.array([0] * 5 + [9])}, "part holds the numbers 0 to 9; expected 0 to 4 for forget, retain"),
        ({"part": np.array(["forget"] * 5 + ["tests"])}, "unknown part 'tests'; did you mean 'test'?"),
        ({"member": np.ones((2, N), bool)}, "member has the shape [2, 6]; expected [3, 6] (one for each model and example) or [6]"),
        ({"member": np.full(N, 2)}, "member holds 2; expected true or false"),
        ({"models": np.array([1, 1, 2])}, "names 2 different seeds for 3 models"),
        ({"models": np.array([1, 2])}, "models has the shape [2]; expected [3]"),
        ({"ids": np.arange(10, 10 + N)[::-1]}, "differ on 6 of 6 examples (first: row 0, 15 and 10); the same ones in another order: sort both by id"),
        ({"ids": np.array([10, 11, 12, 13, 14, 99])}, "differ on 1 of 6 examples (first: row 5, 99 and 15); save the same examples in the same order"),
        ({"labels": LABELS[::-1]}, "labels of"),
        ({"part": np.array([0, 1, 1, 1, 1, 4])}, "(first: row 1, retain and forget)"),
    ],
)
def test_bad_plain_files_are_refused(plain: Path, changes: dict[str, Any], words: str) -> None:
    put(plain / "salun.npz", **changes)
    said = refused(plain)
    assert str(plain / "salun.npz") in said
    assert words in said


def everywhere(folder: Path, **changes: Any) -> None:
    for file in folder.iterdir():
        put(file, **changes)


def test_an_image_is_forgotten_or_kept(plain: Path) -> None:
    everywhere(plain, ids=np.array([10, 11, 12, 10, 11, 15]))
    assert "id 10 is both forget and retain (2 such id(s))" in refused(plain)
    everywhere(plain, ids=np.array([10, 10, 12, 13, 14, 15]))
    assert "id 10 is there twice, as forget (1 such id(s))" in refused(plain)
    everywhere(plain, ids=np.array([10, 11, 12, 13, 14, 10]))
    assert read(plain).oracles.outputs.ids[-1] == 10, "test images have numbers of their own in many releases"


def test_something_must_be_forgotten(plain: Path) -> None:
    everywhere(plain, part=np.array([1, 1, 1, 1, 1, 4]))
    assert "no example of part forget (it has: retain, test)" in refused(plain)


def test_an_oracle_never_saw_the_forgotten(plain: Path) -> None:
    put(plain / "oracles.npz", member=np.array([False, True] + [True] * 4))
    said = refused(plain)
    assert f"{plain / 'oracles.npz'}: some oracle was trained on id 11" in said


def test_two_files_of_one_name_are_refused(plain: Path) -> None:
    save_file(whole(), plain / "salun.safetensors")
    assert "salun.npz and salun.safetensors, which are both 'salun'" in refused(plain)


# ---- what the reader should know


def test_models_that_are_there_twice_are_told(fwp: Path) -> None:
    oracles = logits(seed=0)
    np.save(fwp / "prune" / "logits_unlearn.npy", published(oracles))
    assert read(fwp).notes == ("prune: holds the oracles themselves, bit for bit: compared with them it says nothing",)
    np.save(fwp / "prune" / "logits_unlearn.npy", published(np.concatenate([oracles[:1], logits(seed=1)])))
    assert "prune: 1 of 4 models are oracles, bit for bit" in read(fwp).notes
    np.save(fwp / "prune" / "logits_unlearn.npy", published(logits(seed=1)[[0, 1, 0]]))
    assert "prune: 1 of 3 models repeat another one, bit for bit" in read(fwp).notes
    np.save(fwp / "prune" / "logits_unlearn.npy", published(logits(4, 2)))
    assert "finetune and prune hold the same models, bit for bit" in read(fwp).notes
    assert read(fwp, "prune").notes[-1:] != read(fwp).notes[-1:]


@pytest.mark.parametrize("name", ["original", "originals"])
def test_an_approach_called_so_is_the_originals(fwp: Path, name: str) -> None:
    (fwp / "finetune").rename(fwp / name)
    held = read(fwp, "prune")
    assert held.originals is not None
    assert np.array_equal(held.originals.outputs.logits.numpy(), logits(4, 2))
    assert [one.name for one in held.approaches] == ["prune"]
    assert [one.name for one in read(fwp).approaches] == [name, "prune"]
    assert f"'{name}' is taken for the originals, as that is its name" in held.notes


def test_folders_of_our_outputs_are_read(tmp_path: Path) -> None:
    for at, name in enumerate(("oracle", "original", "salun")):
        (tmp_path / name).mkdir()
        save_file(whole(seed=at), tmp_path / name / "logits.safetensors", metadata={"models": json.dumps([at * 10, at * 10 + 1, at * 10 + 2])})
    held = read(tmp_path)
    assert held.layout == "study"
    assert held.originals is not None
    assert held.originals.outputs.models == (10, 11, 12)
    assert [one.name for one in held.approaches] == ["original", "salun"]
    assert held.oracles.outputs.models == (0, 1, 2)


def test_a_study_taken_out_of_its_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"outputs/oracle": [], "outputs/original": []}))
    assert "taken out of its store" in refused(tmp_path)
    for text in ("[]", '{"data": "data/1"}'):
        (tmp_path / "index.json").write_text(text)
        assert "was not audited yet" in refused(tmp_path)
    (tmp_path / "index.json").write_text("{")
    assert "cut short" in refused(tmp_path)


# ---- writing


def ensemble(name: str, seed: int, models: Sequence[int], n: int = N) -> Ensemble:
    part = torch.tensor([0, 1, 0, 1, 4, 2])[:n]
    member = ((part == 0) & (name != "oracles") | (part == 1)).expand(len(models), -1)
    seen = Outputs(torch.from_numpy(logits(len(models), seed, n)), member, torch.from_numpy(LABELS[:n]), torch.arange(20, 20 + n), part, tuple(models))
    return Ensemble(name, seen, accuracies(seen), Path())


ORACLES, SALUN, RETRAIN = ensemble("oracles", 0, (5, 3, 9)), ensemble("salun", 1, (0, 1)), ensemble("retrain", 2, (6, 7, 8))


def test_fwp_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_fwp(tmp_path / "out", ORACLES, [SALUN, RETRAIN])
    raw = np.load(tmp_path / "out" / "salun" / "logits_unlearn.npy", mmap_mode="r")
    assert raw.dtype == np.float32
    assert np.array_equal(raw, published(logits(2, 1)[:, [0, 2]], LABELS[[0, 2]])), "the forget images, as the published arrays are"
    held = read(tmp_path / "out")
    assert [one.name for one in held.approaches] == ["retrain", "salun"]
    for one, asked in zip((held.oracles, *held.approaches), (ORACLES, RETRAIN, SALUN), strict=True):
        forget = asked.outputs.of("forget")
        assert torch.equal(one.outputs.logits, forget.logits)
        assert torch.equal(one.outputs.labels, forget.labels)
        assert one.accuracies.keys() == asked.accuracies.keys()
        assert all(torch.equal(one.accuracies[part], asked.accuracies[part]) for part in one.accuracies), "to the last bit"
    table = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    assert table[0] + "\n" == HEAD
    assert [row.split(",")[0] for row in table[1:]] == ["5", "3", "9"]
    assert held.notes == ()
    write_fwp(tmp_path / "again", held.oracles, held.approaches)
    for file in (path for path in (tmp_path / "out").rglob("*.npy")):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path / "out")).read_bytes()


def test_accuracies_by_hand() -> None:
    values = torch.tensor([[[2.0, 1, 0], [0, 1, 0], [0, 0, 1]], [[1.0, 1, 0], [5, 1, 0], [0, 3, 1]]])
    part = torch.tensor([0, 1, 1])
    found = accuracies(Outputs(values, torch.zeros(2, 3).bool(), torch.tensor([0, 1, 1]), torch.arange(3), part, (0, 1)))
    assert {name: column.tolist() for name, column in found.items()} == {"retain": [0.5, 0.5], "forget": [1.0, 1.0]}


def test_parts_without_images_stay_blank(tmp_path: Path) -> None:
    short = [replace(one, accuracies={"forget": one.accuracies["forget"]}) for one in (ORACLES, SALUN)]
    write_fwp(tmp_path / "out", short[0], short[1:])
    held = read(tmp_path / "out")
    assert held.oracles.accuracies.keys() == {"forget"}
    write_fwp(tmp_path / "none", replace(ORACLES, accuracies={}), [SALUN])
    assert not (tmp_path / "none" / "metrics.csv").exists()


def test_plain_is_read_as_it_was_written(tmp_path: Path) -> None:
    originals = ensemble("originals", 4, (1, 2))
    write_plain(tmp_path / "out", ORACLES, originals, [SALUN, RETRAIN])
    held = read(tmp_path / "out")
    assert held.originals is not None
    assert [one.name for one in held.approaches] == ["retrain", "salun"]
    for one, asked in zip((held.oracles, held.originals, *held.approaches), (ORACLES, originals, RETRAIN, SALUN), strict=True):
        assert same(one.outputs, asked.outputs), one.name


@pytest.mark.parametrize("write", [lambda folder, *rest: write_fwp(folder, ORACLES, rest), lambda folder, *rest: write_plain(folder, ORACLES, None, rest)])
def test_nothing_is_half_written(tmp_path: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def words(folder: Path, *rest: Ensemble) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError) as caught:
            write(folder, *rest)
        assert sorted(tmp_path.rglob("*")) == before
        return str(caught.value)

    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert "is a file" in words(tmp_path / "file", SALUN)
    assert "is there already, and not empty" in words(tmp_path / "full", SALUN)
    assert f"there is no folder {tmp_path / 'a'} to write b in" in words(tmp_path / "a" / "b", SALUN)
    assert "cannot be a file of that name" in words(tmp_path / "out", replace(SALUN, name="a/b"))
    monkeypatch.chdir(tmp_path / "full")
    (tmp_path / "full" / "mine").unlink()
    assert "is the working folder" in words(Path(), SALUN)
    monkeypatch.chdir(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        patched.setattr("unlearnlab.layouts.fwp.csv.writer", full)
        assert "No space left on device" in words(tmp_path / "out", SALUN)
    write(tmp_path / "full", SALUN)
    assert read(tmp_path / "full").approaches, "an empty folder is filled"


def test_ensembles_of_different_images_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not observed on the same forget images"):
        write_fwp(tmp_path / "out", ORACLES, [ensemble("salun", 1, (0, 1), 2)])
    assert not list(tmp_path.iterdir())


def test_names_that_a_layout_keeps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="may not be called 'originals'"):
        write_plain(tmp_path / "out", ORACLES, None, [replace(SALUN, name="originals")])
    assert not list(tmp_path.iterdir())


def test_flipped_bytes_never_raise_anything_else(fwp: Path, plain: Path) -> None:
    draw = np.random.default_rng(0)
    save_file(whole(seed=3), plain / "ssd.safetensors")
    for folder, file in ((fwp, fwp / "prune" / "logits_unlearn.npy"), (plain, plain / "salun.npz"), (plain, plain / "ssd.safetensors")):
        sound = file.read_bytes()
        for _ in range(60):
            bad = io.BytesIO(sound).getbuffer()
            bad[int(draw.integers(min(300, len(sound))))] = int(draw.integers(256))
            file.write_bytes(bytes(bad))
            try:
                read(folder)
            except InputError as error:
                assert str(file) in str(error)  # noqa: PT017 - it need not be refused: the byte may be a number's
        file.write_bytes(sound)


def test_the_examples_of_the_docs_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "logits.md").read_text(encoding="utf-8")
    writing, reading = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit").mkdir()
    arrays = {"images": np.zeros((N, 8)), "labels": LABELS, "ids": np.arange(N), "part": ["forget"] * 2 + ["retain"] * 3 + ["test"]}
    models = {name: range(at, at + 3) for at, name in ((0, "oracles"), (10, "originals"), (20, "unlearned"))}
    exec(writing, {"predict": lambda seed, images: logits(1, seed, len(images))[0], **models, **arrays})
    exec(reading, {})
    assert capsys.readouterr().out == "my_method torch.Size([3, 6, 4])\n\n"
    held = read(tmp_path / "audit")
    assert held.originals is not None
    assert held.oracles.outputs.part.tolist() == [0, 0, 1, 1, 1, 4]
