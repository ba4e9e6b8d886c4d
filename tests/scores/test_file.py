"""Files of scores as they are published: each format, each direction, and each way in which one does not fit."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unlearnlab.contract import FiledScore, Scores
from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Column, Images
from unlearnlab.scores.file import FileScore
from unlearnlab.scores.memorisation import estimate_memorisation
from unlearnlab.spec import InputError, build, key, to_dict

Save = Callable[..., str]
N, TRAIN = 60, 45  # rows of the release's training part, and how many of them the study trains on


@pytest.fixture(scope="module")
def release() -> Images:
    """The first 80 digits, as a release that holds out the last 20 for testing."""
    held = Digits()().rows(torch.arange(80))
    return replace(held, columns={"split": Column((torch.arange(80) >= N).long(), ("train", "test"))})


@pytest.fixture(scope="module")
def train(release: Images) -> Images:
    """What is left after a validation split, in no order; the last row of the training part is among it."""
    rows = torch.randperm(N - 1, generator=torch.Generator().manual_seed(4))[: TRAIN - 1]
    return release.rows(torch.cat([rows[:20], torch.tensor([N - 1]), rows[20:]]))


@pytest.fixture(scope="module")
def testing(release: Images) -> Images:
    return release.rows(torch.arange(65, 80))  # a study may test on some only


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(name: str = "scores.npz", **arrays: Any) -> str:
        np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return write


def drawn(low: float, high: float, n: int = N, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(low, high, n)


def tables(release: Images) -> dict[str, np.ndarray[Any, Any]]:
    """A file of CIFAR-100, with a block of influence for each class."""
    blocks = {f"infl_matrix_class{c}": np.zeros((5, 2), dtype=np.float32) for c in range(3)}
    return {"tr_mem": drawn(-0.1, 1), "tr_labels": release.labels[:N].numpy(), "tt_labels": release.labels[N:].numpy(), **blocks}


def events(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """N×6: id, last epoch, confidence, max_conf, neg_entropy, bi_acc."""
    n = len(ids)
    return np.stack([ids, np.full(n, 29), drawn(0, 1, n, 1), drawn(0.1, 1, n, 2), drawn(-2.3, 0, n, 3), drawn(0, 1, n, 4)], 1)


def refused(score: FileScore, train: Images, test: Images | None = None) -> str:
    with pytest.raises(InputError) as caught:
        score.read(train, test)
    words = str(caught.value)
    assert "\n" not in words
    assert words.startswith("score 'file': ")
    return words


# ---- memorisation


def test_it_is_a_score_from_a_file(tmp_path: Path) -> None:
    score = FileScore(str(tmp_path))
    assert isinstance(score, FiledScore)
    assert build("score", to_dict(score)) == score


def test_rum_s_file_goes_by_id_and_not_by_position(release: Images, train: Images, testing: Images, save: Save) -> None:
    mem = drawn(-0.1, 1).astype(np.float32)
    mem[int(train.ids[3])] = np.nan
    found = FileScore(save(memorization=mem, influence=np.zeros((20, N), dtype=np.float32))).read(train, testing)
    assert isinstance(found, Scores)
    assert (found.name, found.scale, found.values.dtype) == ("file", "memorisation", torch.float64)
    assert torch.equal(found.ids, train.ids)
    assert [float(v) for v in found.values[4:8]] == [float(mem[i]) for i in train.ids[4:8].tolist()]
    assert bool(found.values[3].isnan())
    assert int(found.values.isnan().sum()) == 1
    turned = train.rows(torch.arange(TRAIN).flip(0))
    assert torch.equal(FileScore(save(memorization=mem)).read(turned).values.flip(0).nan_to_num(), found.values.nan_to_num())


def test_the_public_file_of_cifar_100(release: Images, train: Images, save: Save) -> None:
    held = tables(release)
    found = FileScore(save(**held)).read(train)
    assert found.scale == "memorisation"
    assert torch.equal(found.values, torch.from_numpy(held["tr_mem"])[train.ids])
    noisy = SymmetricNoise(0.9)(train, seed=3)
    assert bool(noisy.mislabelled.any())
    assert torch.equal(FileScore(save(**held)).read(noisy).values, found.values)  # labels of the release count


def test_its_labels_must_be_those_of_the_release(release: Images, train: Images, save: Save) -> None:
    held = tables(release)
    first, second = sorted(train.ids.tolist())[5:7]
    held["tr_labels"] = held["tr_labels"].copy()
    for one in (first, second):
        held["tr_labels"][one] = (int(release.labels[one]) + 1) % 10
    label = int(release.labels[first])
    said = refused(FileScore(save(**held)), train)
    assert f"gives image id {first} the label {(label + 1) % 10}, and the data set {label} (2 such image(s) of {TRAIN})" in said
    outside = next(i for i in range(N) if i not in set(train.ids.tolist()))
    held = tables(release)
    held["tr_labels"] = held["tr_labels"].copy()
    held["tr_labels"][outside] += 1
    FileScore(save(**held)).read(train)  # who is held out is not asked
    shuffled = tables(release) | {"tr_labels": np.roll(release.labels[:N].numpy(), 1)}
    assert "in the order of its release" in refused(FileScore(save(**shuffled)), train)
    del held["tr_labels"]
    assert "has tr_mem without tr_labels" in refused(FileScore(save(**held)), train)
    assert f"has {N - 1} labels and {N} scores" in refused(FileScore(save(tr_mem=drawn(0, 1), tr_labels=release.labels[: N - 1].numpy())), train)
    assert "the label" in refused(FileScore(save(memorization=drawn(0, 1), tr_labels=shuffled["tr_labels"])), train)  # beside other scores they count too


def test_influence_is_never_read(train: Images, save: Save) -> None:
    """Its bytes are garbage here: reading them would fail."""
    mem = drawn(0, 1).astype(np.float32)
    path = save(memorization=mem)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("influence.npy", b"\x93NUMPY and then nothing that an array could be read from")
    with np.load(path) as held, pytest.raises(ValueError, match=r"."):
        held["influence"]
    assert torch.equal(FileScore(path).read(train).values, torch.from_numpy(mem.astype(np.float64))[train.ids])


def test_a_file_of_another_length_is_refused(train: Images, testing: Images, save: Save) -> None:
    late = train.ids[train.ids >= 40]
    said = refused(FileScore(save(memorization=drawn(0, 1, 40))), train)
    assert f"has 40 scores, for the ids 0 to 39, but training image id {int(late.min())} needs one too ({len(late)} such image(s), to id {N - 1})" in said
    assert "test images begin at id 65" in refused(FileScore(save(memorization=drawn(0, 1, 80))), train, testing)
    assert "has scores up to image id 79" in refused(FileScore(save(ids=np.arange(80), score=drawn(0, 1, 80), sign=1)), train, testing)
    interleaved = replace(testing, columns={})  # a release that does not tell them apart
    FileScore(save(memorization=drawn(0, 1, 80))).read(train, interleaved)


def test_no_memorisation_is_outside_of_one(train: Images, save: Save) -> None:
    mem = drawn(0, 1)
    mem[int(train.ids[2])] = 1.5
    path = save(memorization=mem)
    assert f"says memorisation = 1.5 of image id {int(train.ids[2])}; expected -1 to 1" in refused(FileScore(path), train)
    assert "holds a score of the scale memorisation, not proxy" in refused(FileScore(path, scale="proxy"), train)
    assert "knows the score of none of the 45 training images" in refused(FileScore(save(memorization=np.full(N, np.nan))), train)


def test_our_own_format_with_its_sign(train: Images, save: Save) -> None:
    ids = np.random.default_rng(1).permutation(N)
    values = drawn(-1, 1)
    for sign, scale, expected in ((1, "as_written", "proxy"), (-1, "memorisation", "memorisation")):
        found = FileScore(save(ids=ids, score=values, sign=sign), scale=scale).read(train)  # type: ignore[arg-type]
        assert [float(v) for v in found.values] == [sign * float(values[ids == i][0]) for i in train.ids.tolist()]
        assert found.scale == expected
    counted = FileScore(save(ids=ids, score=values, sign=1, n_in=ids + 1, n_out=ids + 2, stderr=values.clip(0))).read(train)
    assert counted.scale == "memorisation"
    assert torch.equal(counted.beside["n_in"], train.ids + 1)
    assert sorted(counted.beside) == ["n_in", "n_out", "stderr"]
    assert "expected one number for each of its 60 scores" in refused(FileScore(save(ids=ids, score=values, sign=1, n_in=ids[1:])), train)
    assert "without sign" in refused(FileScore(save(ids=ids, score=values)), train)
    assert "says sign = 2" in refused(FileScore(save(ids=ids, score=values, sign=2)), train)
    assert "says scale = 'other'" in refused(FileScore(save(ids=ids, score=values, sign=1, scale="other")), train)


def test_ids_that_are_missing_double_or_no_whole_numbers(train: Images, save: Save) -> None:
    ids, values = np.arange(N), drawn(0, 1)
    gone = sorted(train.ids.tolist())[7:9]
    kept = ~np.isin(ids, gone)
    said = refused(FileScore(save(ids=ids[kept], score=values[kept], sign=1)), train)
    assert f"knows nothing of training image id {gone[0]} (2 such image(s) of {TRAIN})" in said
    assert "names image id 3 twice" in refused(FileScore(save(ids=np.where(ids == 9, 3, ids), score=values, sign=1)), train)
    assert "has 3.5 in row 9 of ids" in refused(FileScore(save(ids=np.where(ids == 9, 3.5, ids), score=values, sign=1)), train)
    assert "has nan in row 9 of ids" in refused(FileScore(save(ids=np.where(ids == 9, np.nan, ids), score=values, sign=1)), train)
    assert "has 59 ids and 60 scores" in refused(FileScore(save(ids=ids[:-1], score=values, sign=1)), train)
    assert "knows nothing of training image id" in refused(FileScore(save(ids=ids[:0], score=values[:0], sign=1)), train)


# ---- legacy proxies


@pytest.mark.parametrize(
    ("column", "at", "turned"),
    [
        ("confidence", 2, lambda raw: 1 - raw),
        ("max_conf", 3, lambda raw: 1 - raw),
        ("entropy", 4, lambda raw: -raw),
        ("bi_acc", 5, lambda raw: 1 - raw),
    ],
)
def test_learning_events_are_turned_so_that_high_is_hard(train: Images, save: Save, column: Any, at: int, turned: Callable[[Any], Any]) -> None:
    ids = np.random.default_rng(2).permutation(N)
    held = events(ids)
    easy, hard, unknown = train.ids[:3].tolist()
    extremes = {2: (0.99, 0.02), 3: (1.0, 0.1), 4: (-0.001, -2.3), 5: (1.0, 0.0)}[at]  # of what is easy, and of what is hard
    held[ids == easy, at], held[ids == hard, at] = extremes
    held[ids == unknown, at] = np.nan  # as the entropy is where a probability underflows
    found = FileScore(save(events=held), column=column).read(train)
    assert found.scale == "proxy"
    values = dict(zip(found.ids.tolist(), found.values.tolist(), strict=True))
    assert values[easy] < 0.02 < 0.9 <= values[hard]
    assert np.isnan(values.pop(unknown))
    assert all(value == turned(held[ids == i, at][0]) for i, value in values.items())


def test_learning_events_need_a_column_and_the_published_order_of_columns(train: Images, save: Save) -> None:
    held = events(np.arange(N))
    assert "set column to one of: confidence, max_conf, entropy, bi_acc" in refused(FileScore(save(events=held)), train)
    assert "has float64 [60, 5] under events; expected numbers of the shape [n, 6]" in refused(FileScore(save(events=held[:, 1:]), "bi_acc"), train)
    positive = held * np.array([1, 1, 1, 1, -1, 1])
    said = refused(FileScore(save(events=positive), "entropy"), train)
    assert "neg_entropy" in said
    assert "expected at most 0" in said
    swapped = held[:, [0, 1, 4, 2, 3, 5]]
    assert "expected 0 to 1; reorder its columns" in refused(FileScore(save(events=swapped), "confidence"), train)
    assert "leave column out" in refused(FileScore(save(memorization=drawn(0, 1)), "entropy"), train)
    assert "not memorisation; leave scale out" in refused(FileScore(save(events=held), "bi_acc", scale="memorisation"), train)
    twice = held.copy()
    twice[4, 0] = 5
    assert "names image id 5 twice" in refused(FileScore(save(events=twice), "bi_acc"), train)
    half = held.copy()
    half[4, 0] = 4.5
    assert "has 4.5 in row 4 of the first column of events" in refused(FileScore(save(events=half), "bi_acc"), train)


def test_divergences_of_held_out_retraining(train: Images, save: Save) -> None:
    ids = np.random.default_rng(2).permutation(N)
    raw = drawn(0, 30)
    found = FileScore(save(kl_divergences=np.stack([ids, raw], 1))).read(train)
    assert found.scale == "proxy"
    assert [float(v) for v in found.values] == [float(raw[ids == i][0]) for i in train.ids.tolist()]  # high = memorised already
    assert "expected numbers of the shape [n, 2]" in refused(FileScore(save(kl_divergences=raw)), train)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("number", [float, np.float32, np.float64])
def test_curvatures_are_a_pickled_table(train: Images, tmp_path: Path, protocol: int, number: Any) -> None:
    raw = drawn(0, 4).astype(np.float32)
    table = {i: number(raw[i]) for i in np.random.default_rng(2).permutation(N).tolist()}
    for held in (table, {"curvatures": table}, {"curvatures": raw}, {"curvatures": np.stack([np.arange(N), raw], 1)}):
        path = tmp_path / "curvature.pkl"
        path.write_bytes(pickle.dumps(held, protocol))
        found = FileScore(str(path)).read(train)
        assert found.scale == "proxy"
        assert [float(v) for v in found.values] == [float(raw[i]) for i in train.ids.tolist()]


def test_curvatures_within_an_npz_or_an_npy(train: Images, save: Save, tmp_path: Path) -> None:
    raw = drawn(0, 4)
    table = {np.int64(i): raw[i] for i in range(N)}
    np.save(tmp_path / "a.npy", np.array({"curvatures": table}, dtype=object), allow_pickle=True)
    np.save(tmp_path / "b.npy", np.array(table, dtype=object), allow_pickle=True)
    held = io.BytesIO()
    np.savez_compressed(held, curvatures=np.array(table, dtype=object))
    (tmp_path / "c.npz").write_bytes(held.getvalue())
    for path in (save(curvatures=np.array(table, dtype=object)), save(curvatures=raw), *(tmp_path / name for name in ("a.npy", "b.npy", "c.npz"))):
        found = FileScore(str(path)).read(train)
        assert torch.equal(found.values, torch.from_numpy(raw)[train.ids])


def test_curvatures_that_are_no_numbers(train: Images, tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    for table in ({i: [1.0, 2.0] for i in range(N)}, {i: [0.0] * (i % 3) for i in range(N)}, dict.fromkeys(range(N), "high")):
        path.write_bytes(pickle.dumps({"curvatures": table}))
        assert "under curvatures; expected" in refused(FileScore(str(path)), train)
    path.write_bytes(pickle.dumps({"curvatures": {f"img{i}": 1.0 for i in range(N)}}))
    assert "the keys of curvatures; expected one whole number" in refused(FileScore(str(path)), train)
    path.write_bytes(pickle.dumps({"curvatures": {}}))
    assert refused(FileScore(str(path)), train)
    path.write_bytes(pickle.dumps([1.0, 2.0]))
    assert "holds a list" in refused(FileScore(str(path)), train)


class Touch:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_pickle_is_executed(train: Images, tmp_path: Path, protocol: int) -> None:
    ran, files = tmp_path / "ran", []
    for name, held in {"a.pkl": {"curvatures": {1: Touch(ran)}}, "b.pkl": Touch(ran)}.items():
        (tmp_path / name).write_bytes(pickle.dumps(held, protocol))
        files.append(name)
    np.save(tmp_path / "c.npy", np.array({1: Touch(ran)}, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "d.npz", curvatures=np.array({1: Touch(ran)}, dtype=object))
    np.savez(tmp_path / "e.npz", memorization=np.array([Touch(ran)] * N, dtype=object))
    for name in (*files, "c.npy", "d.npz", "e.npz"):
        said = refused(FileScore(str(tmp_path / name)), train)
        assert ".mkdir, where nothing but numbers and NumPy arrays is read, and none of it was run" in said
    # a number whose bytes would be taken for an address
    for held in (np.float64(1), np.ones(2)):
        (tmp_path / "f.pkl").write_bytes(pickle.dumps(held, 5).replace(b"f8", b"O8"))
        assert "O is no type of a number" in refused(FileScore(str(tmp_path / "f.pkl")), train).replace("object", "O")
    assert not ran.exists()
    pickle.loads((tmp_path / "b.pkl").read_bytes())
    assert ran.exists()  # the payload does run where it is let


# ---- arrays and tables of users


def test_a_bare_array_goes_by_row_of_the_release(train: Images, tmp_path: Path) -> None:
    raw = drawn(0, 1).astype(np.float32)
    np.save(tmp_path / "a.npy", raw)
    found = FileScore(str(tmp_path / "a.npy")).read(train)
    assert found.scale == "proxy"
    assert torch.equal(found.values, torch.from_numpy(raw).double()[train.ids])
    assert FileScore(str(tmp_path / "a.npy"), scale="memorisation").read(train).scale == "memorisation"
    np.save(tmp_path / "a.npy", raw.reshape(6, 10))
    assert "has float32 [6, 10]" in refused(FileScore(str(tmp_path / "a.npy")), train)


def test_a_table_of_ids_and_scores(train: Images, tmp_path: Path) -> None:
    path, raw, labels = tmp_path / "a.csv", drawn(-3, 3), Digits()().labels.tolist()
    unknown = int(train.ids[5])
    rows = [(i, "" if i == unknown else repr(float(raw[i])), labels[i]) for i in range(N)]
    bodies = {
        "id,score\n": [f"{i},{v}" for i, v, _ in rows],
        "\ufeffname,Score, ID ,label\r\n": [f"x,{v},{i},{label}" for i, v, label in rows[::-1]],
        "": [f"{i}, {v}" for i, v, _ in rows],
    }
    for heading, body in bodies.items():
        path.write_text(heading + "\n".join(body) + "\n\n", encoding="utf-8")
        found = FileScore(str(path)).read(train)
        assert np.isnan(float(found.values[5]))
        assert [float(v) for v in found.values[6:]] == [float(raw[i]) for i in train.ids[6:].tolist()]
        assert found.scale == "proxy"


def test_what_is_no_table_of_scores(train: Images, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    good = "".join(f"{i},0.5\n" for i in range(N))
    for text, words in {
        "": "is empty",
        "id,value\n1,2\n": "has the columns id, value; expected id and score",
        "id,score\n" + good + "x,0.1\n": f"has 'x,0.1' in line {N + 2}; expected id, score, as numbers",
        "id,score\n3\n": "has '3' in line 2",
        "id,score\n1.5,3\n": "has '1.5,3' in line 2",
        "id,score\n": "knows nothing of training image id",
        "id,score\n" + good + "7,1\n": "names image id 7 twice",
        "id,score,label\n" + "".join(f"{i},0.5,11\n" for i in range(N)): "the label 11, and the data set",
    }.items():
        path.write_text(text)
        assert words in refused(FileScore(str(path)), train)
    path.write_text(good)
    assert "it is a table" in refused(FileScore(str(path), "entropy"), train)


# ---- folders of runs


def runs(folder: Path, count: int = 6, **changed: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of each model an ``aux_arrays.npz``, in an order of its own; correctness and membership by id. ``changed``: arrays of the fourth model."""
    chance = np.random.default_rng(5)
    correct, member = chance.random((count, N)) < 0.6, np.zeros((count, N), dtype=bool)
    for k in range(count):
        chosen = chance.permutation(N)[:42]
        member[k, chosen] = True
        parts = {"train": chance.permutation(chosen), "removed": chance.permutation(np.setdiff1d(np.arange(N), chosen)), "test": chance.permutation(20)}
        arrays = {"subsample_idx": chosen, **{f"index_{part}": index for part, index in parts.items()}}
        arrays |= {f"correctness_{part}": correct[k, index].astype(np.float32) for part, index in parts.items()}
        (folder / str(k)).mkdir(parents=True, exist_ok=True)
        held = {name: array for name, array in (arrays | (changed if k == 3 else {})).items() if array is not None}
        np.savez(folder / str(k) / "aux_arrays.npz", **held)
    return correct, member


def test_memorisation_from_the_runs_of_held_out_influence(train: Images, testing: Images, tmp_path: Path) -> None:
    correct, member = runs(tmp_path / "0.7")
    found = FileScore(str(tmp_path / "0.7")).read(train, testing)
    assert (found.name, found.scale) == ("file", "memorisation")
    for i, value, n_in, n_out in zip(train.ids.tolist(), found.values.tolist(), found.beside["n_in"].tolist(), found.beside["n_out"].tolist(), strict=True):
        inside = [bool(correct[k, i]) for k in range(6) if member[k, i]]
        outside = [bool(correct[k, i]) for k in range(6) if not member[k, i]]
        assert (n_in, n_out) == (len(inside), len(outside))
        if not inside or not outside:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(sum(inside) / len(inside) - sum(outside) / len(outside))
    assert 0 < int(found.values.isnan().sum()) < 20  # six models of .7: some image is in all of them
    straight = estimate_memorisation(torch.from_numpy(correct), torch.from_numpy(member))
    assert torch.equal(found.beside["stderr"].nan_to_num(), straight.stderr[train.ids].nan_to_num())


def test_runs_that_do_not_fit_are_named(train: Images, testing: Images, tmp_path: Path) -> None:
    everyone, gone = np.arange(N), int(train.ids.min())
    cases: dict[str, dict[str, Any]] = {
        "has no index_removed": {"index_removed": None},
        "twice among its train and removed images": {"index_removed": np.arange(18)},
        "under correctness_train and 42 under index_train": {"correctness_train": np.ones(41)},
        "expected 1 where the model is right": {"correctness_train": np.full(42, 0.5)},
        "other images (subsample_idx)": {"subsample_idx": everyone[:42]},
        "expected one whole number": {"index_train": everyone.reshape(2, -1)},
        "was trained on 43 images": {
            "subsample_idx": None,
            **{f"index_{part}": index for part, index in (("train", everyone[:43]), ("removed", everyone[43:]))},
            **{f"correctness_{part}": np.ones(n) for part, n in (("train", 43), ("removed", 17))},
        },
        f"knows nothing of training image id {gone} (1 such": {
            "subsample_idx": None,
            "index_train": (others := everyone[everyone != gone])[:42],
            "index_removed": others[42:],
            "correctness_removed": np.ones(17),
        },
    }
    for at, (words, changed) in enumerate(cases.items()):
        runs(tmp_path / str(at), **changed)
        said = refused(FileScore(str(tmp_path / str(at))), train)
        assert words in said
        assert str(tmp_path / str(at) / "3" / "aux_arrays.npz") in said
    one = tmp_path / "0" / "0" / "aux_arrays.npz"
    assert "is one run of many; give the folder" in refused(FileScore(str(one)), train)
    long = {"index_removed": np.append(everyone[42:], [70]), "correctness_removed": np.ones(19), "index_train": everyone[:42], "subsample_idx": None}
    runs(tmp_path / "long", **long)
    assert "has scores up to image id 70" in refused(FileScore(str(tmp_path / "long")), train, testing)
    (tmp_path / "empty").mkdir()
    assert "is a folder without an .npz" in refused(FileScore(str(tmp_path / "empty")), train)
    assert "it is a folder of runs" in refused(FileScore(str(tmp_path / "long"), "entropy"), train)


# ---- any file


def test_files_of_another_kind(train: Images, save: Save, tmp_path: Path) -> None:
    mem = drawn(0, 1)
    assert "holds no scores that are known here (its arrays: a, b)" in refused(FileScore(save(a=mem, b=mem)), train)
    assert "holds memorization and curvatures" in refused(FileScore(save(memorization=mem, curvatures=mem)), train)
    assert "cannot read" in refused(FileScore(str(tmp_path / "none.npz")), train)
    assert "under memorization; expected one number for each image" in refused(FileScore(save(memorization=mem.reshape(6, 10))), train)
    assert "under memorization; expected one number for each image" in refused(FileScore(save(memorization=mem.astype(str))), train)
    whole = Path(save(memorization=mem)).read_bytes()
    for content in (whole[: len(whole) // 2], whole.replace(b"NUMPY", b"nUMPY"), b"PK\x03\x04", b"\x80\x04 no pickle", b"\x93NUMPY", bytes(range(256))):
        (tmp_path / "x").write_bytes(content)
        said = refused(FileScore(str(tmp_path / "x")), train)
        assert "is truncated or damaged" in said or "is neither" in said
    torch.save({"memorization": torch.ones(N)}, tmp_path / "x.pt")
    assert "holds no scores that are known here" in refused(FileScore(str(tmp_path / "x.pt")), train)


def test_its_key_goes_by_what_the_file_holds(train: Images, save: Save, tmp_path: Path) -> None:
    path = Path(save(memorization=drawn(0, 1)))
    before, moved = key(FileScore(str(path))), tmp_path / "moved"
    moved.write_bytes(path.read_bytes())
    assert key(FileScore(str(moved))) == before
    assert key(FileScore(str(moved), scale="proxy")) != before
    assert key(FileScore(str(moved), column="entropy")) != before
    np.savez_compressed(path, memorization=drawn(0, 1), influence=np.ones((9, N)))
    assert key(FileScore(str(path))) == before  # influence is not read, and how an array is packed means nothing
    path.write_bytes(path.read_bytes()[:-30])
    assert key(FileScore(str(path))) != before  # damaged
    for one in (save(memorization=drawn(0, 1, seed=9)), save(tr_mem=drawn(0, 1)), save(memorization=drawn(0, 1), tr_labels=np.zeros(N))):
        assert key(FileScore(one)) != before
    with pytest.raises(InputError, match=r"cannot read .*gone"):
        key(FileScore(str(tmp_path / "gone")))
    runs(tmp_path / "a")
    runs(tmp_path / "b")
    assert key(FileScore(str(tmp_path / "a"))) == key(FileScore(str(tmp_path / "b")))
    (tmp_path / "b" / "5" / "aux_arrays.npz").unlink()
    assert key(FileScore(str(tmp_path / "a"))) != key(FileScore(str(tmp_path / "b")))


def test_a_path_from_home(train: Images, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    direct = FileScore(save("in_home.npz", memorization=drawn(0, 1)))
    assert torch.equal(FileScore("~/in_home.npz").read(train).values, direct.read(train).values)
    assert key(FileScore("~/in_home.npz")) == key(direct)
