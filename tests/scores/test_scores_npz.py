"""Files of scores: ours, and the public layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unlearnlab.contract import Scores
from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Images
from unlearnlab.scores.file import FileScore
from unlearnlab.scores.npz import read_npz, write_npz, write_scores
from unlearnlab.spec import InputError

IDS = torch.tensor([7, 2, 11, 4])
VALUES = torch.tensor([0.25, -0.125, 1.0, float("nan")], dtype=torch.float64)  # exact in float32


@pytest.fixture
def train() -> Images:
    return Digits()().take(IDS.tolist())


def scores(scale: str = "memorisation", **beside: torch.Tensor) -> Scores:
    return Scores("memorisation", IDS, VALUES, scale, beside)  # type: ignore[arg-type]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0)))


def test_our_own_file_keeps_everything(tmp_path: Path, train: Images) -> None:
    stderr, influence = torch.tensor([0.1, 0.2, 0.3, torch.nan], dtype=torch.float64), torch.rand(4, 6)
    n_in = torch.tensor([3, 5, 0, 1])
    made = scores(stderr=stderr, n_in=n_in, influence=influence)
    write_npz(tmp_path / "a.npz", made, "the key")
    write_scores(tmp_path / "b", made, "own", config_hash="the key")  # a name without an ending stays as it is
    for path in (tmp_path / "a.npz", tmp_path / "b"):
        held = read_npz(path)
        assert (held.name, held.scale, sorted(held.beside)) == ("memorisation", "memorisation", ["influence", "n_in", "stderr"])
        assert torch.equal(held.ids, IDS)
        assert same(held.values, VALUES)
        assert same(held.beside["stderr"], stderr)
        assert torch.equal(held.beside["influence"], influence)
        with np.load(path) as raw:
            assert (str(raw["config_hash"]), int(raw["sign"])) == ("the key", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b"]
    read = FileScore(str(tmp_path / "b")).read(train)
    assert (read.name, read.scale, sorted(read.beside)) == ("file", "memorisation", ["n_in", "stderr"])  # influence is left alone
    assert torch.equal(read.beside["n_in"], n_in)
    assert same(read.values, VALUES)


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=IDS, score=VALUES, sign=1, config_hash="", name="x")
    with pytest.raises(InputError, match="has no 'scale'"):
        read_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", ids=IDS, score=VALUES, sign=1, config_hash="", name="x", scale="other")
    with pytest.raises(InputError, match="expected memorisation or proxy"):
        read_npz(tmp_path / "a.npz")


def test_the_layout_of_rum(tmp_path: Path, train: Images) -> None:
    write_scores(tmp_path / "rum.npz", scores(), "memorization", Digits()())
    with np.load(tmp_path / "rum.npz") as held:
        assert held.files == ["memorization"]
        found = held["memorization"]
    assert (found.dtype, found.shape) == (np.float32, (1797,))  # a row for each image of the release
    assert [found[i] for i in (7, 2, 11)] == [0.25, -0.125, 1.0]
    assert int(np.isnan(found).sum()) == 1797 - 3
    read = FileScore(str(tmp_path / "rum.npz")).read(train)
    assert same(read.values, VALUES)
    assert read.scale == "memorisation"


def test_the_layout_of_the_cifar_100_file_holds_the_labels_of_the_release(tmp_path: Path, train: Images) -> None:
    noisy = SymmetricNoise(0.9)(train, seed=3)
    assert bool(noisy.mislabelled.any())
    write_scores(tmp_path / "c.npz", scores(), "tr_mem", noisy)
    with np.load(tmp_path / "c.npz") as held:
        assert sorted(held.files) == ["tr_labels", "tr_mem"]
        mem, labels = held["tr_mem"], held["tr_labels"]
    assert (mem.shape, mem.dtype, labels.dtype) == ((12,), np.float32, np.int64)  # up to the highest id given
    assert labels.tolist() == [-1, -1, int(train.labels[1]), -1, int(train.labels[3]), -1, -1, int(train.labels[0]), -1, -1, -1, int(train.labels[2])]
    assert same(FileScore(str(tmp_path / "c.npz")).read(noisy).values, VALUES)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path, train: Images) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(InputError, match="is a proxy, and the layout 'memorization' means memorisation"):
        write_scores(path, scores("proxy"), "memorization", train)
    with pytest.raises(InputError, match="give the images that were scored"):
        write_scores(path, scores(), "tr_mem")
    with pytest.raises(InputError, match="image id 11 has a score 'memorisation', but is not among the 3 images given"):
        write_scores(path, scores(), "tr_mem", train.without([11]))
    with pytest.raises(InputError, match="cannot write the scores to"):
        write_scores(tmp_path / "none" / "x.npz", scores())
    assert not list(tmp_path.iterdir())
